"""Models by name: what cannot work is refused before weights are read, and nothing is completed by chance."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, BertConfig, Gemma3Config, T5Config

from tests.helpers import tiny
from zerounlearn.errors import ConfigError, OutputError
from zerounlearn.model import loading
from zerounlearn.model.loading import check_device, check_room, load_model, save_checkpoint, skeleton_of


@pytest.fixture
def folder(tmp_path: Path, small_tokenizer: Any) -> Path:
    """A good checkpoint, under a name that says nothing of its family."""
    place = tmp_path / "mine"
    tiny("qwen3", len(small_tokenizer), dtype=torch.float32).save_pretrained(place)
    small_tokenizer.save_pretrained(place)
    return place


def configured(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes, default=str))


def without(folder: Path, name: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_class_is_the_checkpoints_own_whatever_the_folder_is_called(folder: Path, tmp_path: Path) -> None:
    """A Qwen in a folder named llama, internlm or baichuan is a Qwen, and no code of a checkpoint runs."""
    for name in ("llama-qwen", "internlm", "baichuan-7b"):
        shutil.copytree(folder, tmp_path / name)
        model, tokenizer = load_model(str(tmp_path / name), device="cpu")
        assert type(model).__name__ == "Qwen3ForCausalLM"
        assert not model.training
        assert tokenizer("a")["input_ids"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_checkpoint_comes_back_in_its_own_dtype_with_its_tokenizers_files(
    folder: Path, tmp_path: Path, dtype: str
) -> None:
    AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    model, tokenizer = load_model(str(folder), device="cpu")
    assert model.dtype == getattr(torch, dtype)
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "saved/model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()


REFUSED = {
    "quantised": (
        lambda f: configured(f, quantization_config={"quant_method": "gptq", "bits": 4}),
        "is quantised (gptq)",
    ),
    "bitsandbytes": (
        lambda f: configured(f, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        "is quantised (bitsandbytes)",
    ),
    "encoder-decoder": (
        lambda f: (f / "config.json").write_text(json.dumps(T5Config().to_dict(), default=str)),
        "is an encoder–decoder (t5)",
    ),
    "encoder": (
        lambda f: (f / "config.json").write_text(
            json.dumps(BertConfig().to_dict() | {"architectures": ["BertModel"]}, default=str)
        ),
        "is a BertModel and would be loaded as",
    ),
    "vision": (
        lambda f: (f / "config.json").write_text(
            json.dumps(Gemma3Config().to_dict() | {"architectures": ["Gemma3ForConditionalGenerationX"]}, default=str)
        ),
        "mine'",
    ),
    "own code": (
        lambda f: configured(f, model_type="mystery", auto_map={"AutoConfig": "run.Config"}, architectures=["X"]),
        "mine'",
    ),
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "adapter": (
        lambda f: ((f / "config.json").unlink(), (f / "adapter_config.json").write_text("{}")),
        "is an adapter: merge it",
    ),
    "config of nonsense": (lambda f: configured(f, hidden_size=-3), "mine'"),
    "config is a list": (lambda f: (f / "config.json").write_text("[1]"), "no configuration can be read"),
    "no tokenizer": (
        lambda f: [p.unlink() for p in f.glob("tokenizer*")],
        "has no tokenizer",
    ),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "pickled": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "are pickled (pytorch_model.bin)",
    ),
    "truncated": (
        lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-100]),
        "model.safetensors is missing, damaged or truncated",
    ),
    "a layer is missing": (
        lambda f: without(f, "model.layers.2.mlp.down_proj.weight"),
        "lacks model.layers.2.mlp.down_proj.weight",
    ),
    "generation settings": (
        lambda f: (f / "generation_config.json").write_text(
            json.dumps({"eos_token_id": 2, "do_sample": False, "temperature": 0.9, "top_p": 0.6})
        ),
        "generation_config.json is invalid",
    ),
    "another class": (lambda f: configured(f, architectures=["LlamaForCausalLM"]), "is a LlamaForCausalLM and would"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_edited_is_refused_before_a_weight_is_read(
    folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, message = REFUSED[kind]
    damage(folder)
    monkeypatch.setattr(
        loading.AutoModelForCausalLM, "from_pretrained", lambda *a, **k: pytest.fail("the weights were read")
    )
    for attempt in (lambda: skeleton_of(str(folder)), lambda: load_model(str(folder), device="cpu")):
        with pytest.raises(ConfigError) as refused:
            attempt()
        assert message in str(refused.value)
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["./gone", "/gone/away", "models/none", "~/none", "a/b/c", "gone/", "", " "])
def test_a_path_that_is_none_is_refused_at_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *a, **k: pytest.fail("the hub was asked"))
    with pytest.raises(ConfigError, match="models fetch|expected a checkpoint"):
        skeleton_of(name)


def test_weights_that_do_not_fit_the_configuration_are_an_error(folder: Path) -> None:
    """Another architecture's tensors beside ours; a tensor of another shape."""
    weights = load_file(folder / "model.safetensors")
    extra = weights | {"model.layers.0.mlp.gate_up.weight": torch.zeros(2, 2)}
    save_file(extra, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"has no place for model.layers.0.mlp.gate_up.weight"):
        load_model(str(folder), device="cpu")
    name = "model.layers.1.mlp.down_proj.weight"
    save_file(
        weights | {name: weights[name][:, :-1].contiguous()}, folder / "model.safetensors", metadata={"format": "pt"}
    )
    with pytest.raises(ConfigError, match=name):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("device", ["gpu", "banana", 0, 7, "cuda:7", "mps", "meta", {"a": 1}])
def test_devices_that_are_not_there(device: Any) -> None:
    if device == 0 and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match="device="):
        check_device(device)
    assert check_device("cpu") == torch.device("cpu")
    assert check_device("auto").type in ("cpu", "cuda")


def test_a_full_disk_is_found_before_the_work(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = load_model(str(folder), device="cpu")
    check_room(model, tmp_path / "new/out")
    monkeypatch.setattr(loading.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OutputError, match="free some, or name another folder"):
        check_room(model, tmp_path / "new/out")


def test_a_model_with_adapters_is_refused(small_tokenizer: Any) -> None:
    peft = pytest.importorskip("peft")
    model = tiny("llama", len(small_tokenizer), dtype=torch.float32)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for given in (wrapped, wrapped.get_base_model()):
        with pytest.raises(ConfigError, match="merge them first"):
            loading.check_model(given)
    loading.check_model(wrapped.merge_and_unload())


def test_tied_weights_are_no_missing_ones(folder: Path, small_tokenizer: Any, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.tie_word_embeddings = True
    model.set_output_embeddings(torch.nn.Linear(1, 1, bias=False))
    model.get_output_embeddings().weight = model.get_input_embeddings().weight
    model.save_pretrained(tmp_path / "tied")
    small_tokenizer.save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied/model.safetensors")
    tied, _ = load_model(str(tmp_path / "tied"), device="cpu")
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight
    assert AutoTokenizer.from_pretrained(tmp_path / "tied")("a")["input_ids"]


@pytest.mark.parametrize(("dtype", "loaded"), [("bfloat16", "auto"), ("float32", "auto"), ("float32", "bfloat16")])
def test_a_sharded_checkpoint_comes_back_in_as_many_files(
    folder: Path, tmp_path: Path, dtype: str, loaded: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    names = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(names) > 2
    model, tokenizer = load_model(str(folder), device="cpu", dtype=loaded)
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    assert sorted(file.name for file in (tmp_path / "saved").glob("*.safetensors")) == names
    if loaded == "auto":
        for name in [*names, "model.safetensors.index.json"]:
            assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()


def test_settings_come_back_byte_for_byte_unless_they_were_changed(folder: Path, tmp_path: Path) -> None:
    """config.json too, whatever the version of transformers that wrote it."""
    configured(folder, transformers_version="4.40.0", my_own_note="kept")
    written = json.loads((folder / "config.json").read_text())
    written["torch_dtype"] = written.pop("dtype")  # as it was called before transformers 5
    (folder / "config.json").write_text(json.dumps(written))
    (folder / "generation_config.json").write_text('{"eos_token_id": [1],\n "do_sample": true, "temperature": 0.6}')
    model, tokenizer = load_model(str(folder), device="cpu")
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()
    model, tokenizer = load_model(str(folder), device="cpu", dtype="bfloat16")
    save_checkpoint(model, tokenizer, tmp_path / "half")
    assert json.loads((tmp_path / "half/config.json").read_text())["dtype"] == "bfloat16"
    model.config.vocab_size += 0
    model.config.my_own_note = "changed"
    save_checkpoint(model, tokenizer, tmp_path / "changed")
    assert json.loads((tmp_path / "changed/config.json").read_text())["my_own_note"] == "changed"


def test_code_that_a_checkpoint_brings_comes_back_with_it(folder: Path, tmp_path: Path) -> None:
    """It runs only where that was asked for."""
    (folder / "own.py").write_text(OWN_MODEL)
    classes = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Own"}
    configured(folder, model_type="own", architectures=["Own"], auto_map=classes)
    with pytest.raises(ConfigError, match="contains custom code"):
        load_model(str(folder), device="cpu")
    model, tokenizer = load_model(str(folder), device="cpu", trust_remote_code=True)
    assert type(model).__name__ == "Own"
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    assert (tmp_path / "saved/own.py").read_text() == OWN_MODEL
    again, _ = load_model(str(tmp_path / "saved"), device="cpu", trust_remote_code=True)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


OWN_MODEL = """
from transformers import Qwen3Config, Qwen3ForCausalLM

class Config(Qwen3Config):
    model_type = "own"

class Own(Qwen3ForCausalLM):
    config_class = Config
"""


def test_a_name_that_is_no_folder_is_refused_at_once_where_the_hub_cannot_be_reached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def nowhere(*_: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(loading.urllib.request, "getproxies", dict)
    monkeypatch.setattr(loading.socket, "getaddrinfo", nowhere)
    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", lambda *a, **k: pytest.fail("the hub was asked"))
    for name in ("mymodel", "someone/mymodel", "not a name of the hub!"):
        with pytest.raises(ConfigError, match=rf"model_name='{name}': there is no such folder, .*models fetch"):
            skeleton_of(name)


def test_a_model_of_the_hub_is_loaded_by_its_id_and_saved_as_it_came(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the hub's cache, as it looks after a download."""
    cache, commit = tmp_path / "cache", "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--someone--mine"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(commit)
    configured(folder, transformers_version="4.40.0")
    shutil.copytree(folder, repository / "snapshots" / commit)
    monkeypatch.setattr(loading.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(loading.constants, "HF_HUB_OFFLINE", True)
    model, tokenizer = load_model("someone/mine", device="cpu")
    save_checkpoint(model, tokenizer, tmp_path / "saved")
    names = {file.name for file in folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= names
    for name in names:
        assert (tmp_path / "saved" / name).read_bytes() == (folder / name).read_bytes()

"""Finding EasyEdit and importing it without side effects.

What is read off the real editions is collected by one process for each edition, since an import cannot be
undone; `FACTS` is that process's program.
"""

from __future__ import annotations

import ast
import copy
import importlib.util
import json
import logging
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from zerounlearn.errors import FrameworkError

pytest.importorskip(
    "zerounlearn.easyedit",
    exc_type=FrameworkError,
    reason="EasyEdit is neither installed nor in EASYEDIT_HOME",
)
from zerounlearn.easyedit.editions import compat, legacy
from zerounlearn.easyedit.editions.placeholders import OPTIONAL, Placeholder, guarded_builtins

HIDDEN, INTERMEDIATE, LAYERS = 32, 64, 3

FACTS = """
import contextlib, importlib, importlib.util, io, json, logging, marshal, os, random, sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import transformers

checkpoint, optional = sys.argv[1], json.loads(sys.argv[2])
facts = {}

def state():
    root = logging.getLogger()
    return {
        "python random": repr(random.getstate()),
        "numpy random": repr(np.random.get_state()),
        "torch random": torch.get_rng_state().tolist(),
        "root logger": [root.level, len(root.handlers)],
        "CUDA_LAUNCH_BLOCKING": os.environ.get("CUDA_LAUNCH_BLOCKING"),
        "sys.path": list(sys.path),
        "default dtype": str(torch.get_default_dtype()),
        "grad mode": torch.is_grad_enabled(),
        "installed": {name: importlib.util.find_spec(name) is not None for name in optional},
        "files": os.listdir("."),
    }

# What these do on import is theirs: through torch 2.4's the first draws from Python's generator, the other adds a path.
for name in ("torch.onnx", "setuptools"):
    with contextlib.suppress(ImportError):
        importlib.import_module(name)
seeds = []
torch.cuda.manual_seed_all = seeds.append
before = state()
from zerounlearn.easyedit.editions.compat import framework  # which also registers
found = framework()
after = state()
facts["changed"] = [key for key in before if before[key] != after[key]]
facts["accelerator seeds"] = list(seeds)
torch.manual_seed(5)
facts["accelerator seeds by hand"] = seeds
from zerounlearn.easyedit.editions.placeholders import Placeholder
from zerounlearn.errors import FrameworkError

facts["edition"] = found.edition
facts["location"] = str(found.location)
facts["same again"] = framework() == found
facts["placeholder modules"] = [
    name for name, module in sys.modules.items() if isinstance(module, Placeholder)
]
utils = transformers.utils.import_utils
facts["believed"] = {
    "torchvision": utils.is_torchvision_available(),
    "PIL": utils.is_vision_available(),
    "cv2": utils.is_cv2_available(),
    "scipy": utils.is_scipy_available(),
    "sklearn": utils.is_sklearn_available(),
}
facts["installed"] = before["installed"]

randaugment = importlib.import_module("easyeditor.dataset.processor.randaugment")
facts["cv2 is the installed one"] = getattr(randaugment.cv2, "MARK", None) == "installed"
ike = importlib.import_module("easyeditor.models.ike.ike_main")
if before["installed"]["sentence_transformers"]:
    facts["use"] = "installed"
else:
    try:
        ike.SentenceTransformer("any")
    except FrameworkError as error:
        facts["use"] = str(error)

editor_module = importlib.import_module("easyeditor.editors.editor")
plain = SourceFileLoader(editor_module.__name__, editor_module.__file__).get_code(editor_module.__name__)
ours = editor_module.__loader__.get_code(editor_module.__name__)
facts["same code as plainly imported"] = marshal.dumps(plain) == marshal.dumps(ours)
facts["plain bytecode is plain"] = b"zerounlearn" not in marshal.dumps(plain)

records = []
class Keep(logging.Handler):
    def emit(self, record):
        records.append(record.getMessage())
logging.getLogger().addHandler(Keep())

from easyeditor import BaseEditor, ROMEHyperParams
import easyeditor

model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint)
for _ in range(3):
    BaseEditor(SimpleNamespace(
        model_name=(model, tokenizer), alg_name="FT", model_parallel=False, device="cpu"
    ))
facts["messages of three editors"] = records.count("Instantiating model")
facts["handlers of the editor's logger"] = len(editor_module.LOG.handlers)
facts["files after construction"] = os.listdir(".")

common = dict(
    model_name=checkpoint, device="cpu", fact_token="subject_last", v_num_grad_steps=3, v_lr=0.5,
    v_loss_layer=2, v_weight_decay=1e-3, clamp_norm_factor=4, kl_factor=0.0625,
    rewrite_module_tmp="model.layers.{}.mlp.down_proj", layer_module_tmp="model.layers.{}",
    mlp_module_tmp="model.layers.{}.mlp", attn_module_tmp="model.layers.{}.self_attn",
    ln_f_module="model.norm", lm_head_module="lm_head", mom2_dataset="wikipedia", mom2_n_samples=10,
    mom2_dtype="float32", stats_dir="stats",
)
rome = ROMEHyperParams(
    **common, alg_name="ROME", layers=[1], mom2_adjustment=False, context_template_length_params=[[3, 5]]
)
memit = easyeditor.MEMITHyperParams(
    **common, alg_name="MEMIT", layers=[0, 1], layer_selection="all", mom2_adjustment=True,
    mom2_update_weight=10,
)
# The corpus behind the statistics is not at hand; any positive definite matrix will do.
memit_main = importlib.import_module("easyeditor.models.memit.memit_main")
memit_main.get_cov = lambda *args, **kwargs: torch.eye(model.config.intermediate_size)

facts["methods"] = {}
for hparams in (rome, memit):
    editor = BaseEditor.from_hparams(hparams)
    weight = editor.model.get_parameter("model.layers.1.mlp.down_proj.weight")
    original, edited = weight.detach().clone(), []
    apply = editor.apply_algo
    def recorded(*args, **kwargs):
        result = apply(*args, **kwargs)
        edited.append(weight.detach().clone())
        return result
    editor.apply_algo = recorded
    with contextlib.redirect_stdout(io.StringIO()):
        metrics, _, _ = editor.edit(
            prompts=["The capital of France is"], target_new=["Tokyo"], ground_truth=["Paris"],
            subject=["France"], keep_original_weight=True, verbose=False,
        )
    change = (edited[0] - original).norm().item()
    facts["methods"][hparams.alg_name] = {
        "change": change,
        "restored": torch.equal(weight, original),
        "post": metrics[0]["post"]["rewrite_acc"],
        "dtype": str(weight.dtype),
        "tokens": editor.tok.encode("The capital of France is"),
        "tokens expected": tokenizer.encode("The capital of France is"),
    }

left = BaseEditor.from_hparams(SimpleNamespace(
    model_name=checkpoint, alg_name="FT", model_parallel=False, device="cpu"
))
facts["padding of FT"] = left.tok.padding_side

nethook = importlib.import_module("easyeditor.util.nethook")
layer = model.model.layers[1]
inputs = {"input_ids": torch.arange(6).view(2, 3)}
with torch.no_grad():
    expected = model(**inputs).logits
    with nethook.Trace(model, "model.layers.1") as trace:
        traced = model(**inputs).logits
    with nethook.Trace(model, "model.layers.1", edit_output=lambda output: (output[0] + 1,)) as _:
        shifted = model(**inputs).logits if found.edition == "wheel" else None
facts["trace"] = {
    "tuple": isinstance(trace.output, tuple),
    "model undisturbed": torch.equal(traced, expected),
    "edit reaches the model": shifted is not None and not torch.allclose(shifted, expected),
    "hooks left": len(layer._forward_hooks),
}
print("FACTS" + json.dumps(facts))
"""


def run(program: str, *arguments: str, cwd: Path, **environment: str | None) -> str:
    """Standard output of `program` in a fresh interpreter; `None` removes an environment variable."""
    merged = {**os.environ, **environment}
    completed = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={name: value for name, value in merged.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert completed.returncode == 0, completed.stderr[-4000:]
    return completed.stdout


def wheel_location() -> Path:
    """The installed 2023 edition, found without importing it."""
    for folder in sys.path:
        candidate = Path(folder) / "easyeditor"
        if (candidate / "__init__.py").is_file() and not (candidate / "util" / "device.py").is_file():
            return candidate
    pytest.skip("the 2023 edition is not installed: pip install --no-deps easyeditor")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random bfloat16 Llama with a byte-level tokenizer, in a folder that EasyEdit takes for a Llama."""
    folder = tmp_path_factory.mktemp("checkpoints") / "tiny-llama"
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|end|>", "<|unknown|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(["The capital of France is Paris. The capital of Japan is Tokyo."] * 20, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|end|>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        unk_token="<|unknown|>",
    )
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["wheel", pytest.param("checkout", marks=pytest.mark.easyedit_checkout)])
def facts(request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    home = None
    if request.param == "checkout":
        home = os.environ.get(compat.HOME)
        if not home:
            pytest.skip(f"{compat.HOME} does not name a checkout of EasyEdit")
    else:
        wheel_location()
    installed = tmp_path_factory.mktemp("installed")
    (installed / "cv2").mkdir()
    (installed / "cv2" / "__init__.py").write_text("MARK = 'installed'\n")
    paths = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    output = run(
        FACTS,
        str(checkpoint),
        json.dumps(list(OPTIONAL)),
        cwd=tmp_path_factory.mktemp("cwd"),
        EASYEDIT_HOME=home,
        CUDA_LAUNCH_BLOCKING=None,
        PYTHONPATH=paths,
        PYTHONPYCACHEPREFIX=str(tmp_path_factory.mktemp("bytecode")),
    )
    return {"param": request.param, **json.loads(output.partition("FACTS")[2])}


def test_real_edition_is_found_and_imported_once(facts: dict[str, Any]) -> None:
    assert facts["edition"] == facts["param"]
    assert Path(facts["location"]).name == "easyeditor"
    assert facts["same again"]


def test_real_import_changes_nothing_of_the_process(facts: dict[str, Any]) -> None:
    assert facts["changed"] == []
    assert facts["accelerator seeds"] == []
    assert facts["accelerator seeds by hand"] == [5]


def test_others_see_only_what_is_installed(facts: dict[str, Any]) -> None:
    installed = facts["installed"]
    assert facts["placeholder modules"] == []
    # cv2 is the fake one, which transformers sees as it sees any package.
    assert facts["believed"]["cv2"] is installed["cv2"] is True
    assert facts["believed"]["PIL"] is installed["PIL"]
    assert facts["believed"]["torchvision"] is (installed["torchvision"] and installed["PIL"])
    assert facts["believed"]["scipy"] is installed["scipy"]
    assert facts["believed"]["sklearn"] is installed["sklearn"]


def test_installed_package_is_the_one_used(facts: dict[str, Any]) -> None:
    assert facts["cv2 is the installed one"]


def test_use_of_an_absent_package_names_it_and_the_command(facts: dict[str, Any]) -> None:
    if facts["use"] == "installed":
        pytest.skip("sentence-transformers is installed here, so there is no placeholder for it")
    assert "sentence_transformers.SentenceTransformer" in facts["use"]
    assert "pip install sentence-transformers" in facts["use"]


def test_only_the_wheel_is_rewritten_and_only_in_memory(facts: dict[str, Any]) -> None:
    assert facts["same code as plainly imported"] is (facts["param"] == "checkout")
    assert facts["plain bytecode is plain"]


def test_constructing_editors_writes_nothing_and_reports_once_each(facts: dict[str, Any]) -> None:
    assert facts["files after construction"] == []
    assert facts["handlers of the editor's logger"] == 0
    assert facts["messages of three editors"] == 3


@pytest.mark.parametrize("method", ["ROME", "MEMIT"])
def test_real_edition_edits_on_the_cpu(facts: dict[str, Any], method: str) -> None:
    outcome = facts["methods"][method]
    assert outcome["change"] > 1e-3
    assert outcome["restored"]
    assert 0 <= outcome["post"][0] <= 1


@pytest.mark.parametrize("method", ["ROME", "MEMIT"])
def test_both_editions_load_the_same_model_and_tokenizer(facts: dict[str, Any], method: str) -> None:
    outcome = facts["methods"][method]
    assert outcome["dtype"] == "torch.float32"
    # The number of tokens proves nothing: the wrong tokenizer drops the spaces and keeps the count.
    assert outcome["tokens"] == outcome["tokens expected"]


def test_padding_side_is_still_easyedits_choice(facts: dict[str, Any]) -> None:
    assert facts["padding of FT"] == "left"


def test_trace_of_a_decoder_layer(facts: dict[str, Any]) -> None:
    trace = facts["trace"]
    assert trace["model undisturbed"]
    assert trace["hooks left"] == 0
    if facts["param"] == "wheel":
        assert trace["tuple"]
        assert trace["edit reaches the model"]


@pytest.fixture
def no_framework() -> Iterator[None]:
    """As if EasyEdit had not been imported; whatever a test imports in its place is taken out again.

    Name it before `monkeypatch`: what that puts into `sys.modules` must go before this puts back the real one.
    """
    saved = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "easyeditor"}
    meta_path = sys.meta_path[:]
    sys.meta_path[:] = [finder for finder in meta_path if not isinstance(finder, compat._Finder)]
    home = os.environ.pop(compat.HOME, None)
    yield
    if home is not None:
        os.environ[compat.HOME] = home
    for name in [name for name in sys.modules if name.partition(".")[0] == "easyeditor"]:
        del sys.modules[name]
    sys.modules.update(saved)
    sys.meta_path[:] = meta_path


def test_missing_framework_names_both_ways_to_get_it(no_framework: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "path_importer_cache", {})
    with pytest.raises(FrameworkError) as caught:
        compat.framework()
    message = str(caught.value)
    assert "pip install --no-deps easyeditor" in message
    assert "pip install 'zerounlearn[easyedit]'" in message
    assert "git clone https://github.com/zjunlp/EasyEdit" in message
    assert "export EASYEDIT_HOME=" in message
    assert isinstance(caught.value, ImportError)


@pytest.mark.parametrize("content", ["nothing", "namespace", "file"])
def test_wrong_home_is_named_with_its_value(
    no_framework: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> None:
    if content == "namespace":
        (tmp_path / "easyeditor").mkdir()
    home = tmp_path / "file" if content == "file" else tmp_path
    if content == "file":
        home.write_text("")
    monkeypatch.setenv(compat.HOME, str(home))
    with pytest.raises(FrameworkError, match="EASYEDIT_HOME=") as caught:
        compat.framework()
    assert repr(str(home)) in str(caught.value)


def fake_checkout(folder: Path, init: str) -> Path:
    for path, text in {
        "__init__.py": init,
        "util/__init__.py": "",
        "util/device.py": "",
        "lazy.py": "def answer():\n    from .part import VALUE\n    return VALUE\n",
        "part.py": "import torchvision\nVALUE = 7\n",
    }.items():
        file = folder / "easyeditor" / path
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return folder


def test_a_name_that_transformers_dropped_names_the_release_to_install(
    no_framework: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = fake_checkout(tmp_path, "from transformers.a_module_of_an_older_release import masks\n")
    monkeypatch.setenv(compat.HOME, str(home))
    with pytest.raises(FrameworkError, match=f"transformers {compat.TESTED_TRANSFORMERS}.*pip install 'transformers=="):
        compat.framework()


@pytest.mark.easyedit_checkout
@pytest.mark.skipif(not os.environ.get(compat.HOME), reason=f"{compat.HOME} names no checkout")
def test_the_checkouts_pins_lie_in_our_ranges() -> None:
    ours = {
        requirement.name.lower(): requirement.specifier
        for requirement in map(Requirement, metadata.requires("zerounlearn") or [])
        if requirement.marker is None or requirement.marker.evaluate({"extra": "easyedit"})
    }
    lines = (Path(os.environ[compat.HOME]) / "requirements.txt").read_text(encoding="utf-8").split()
    pins = {name.lower(): pin for name, equals, pin in (line.partition("==") for line in lines) if equals}
    shared = sorted(ours.keys() & pins)
    assert {"torch", "transformers", "numpy", "peft"} <= set(shared)
    assert not [f"{name} {pins[name]}" for name in shared if pins[name] not in ours[name]]


def test_failed_import_is_explained_and_leaves_nothing_behind(
    no_framework: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = fake_checkout(tmp_path, "from . import util\nimport package_that_nobody_has\n")
    monkeypatch.setenv(compat.HOME, str(home))
    meta_path = sys.meta_path[:]
    with pytest.raises(FrameworkError, match="package_that_nobody_has") as caught:
        compat.framework()
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    assert sys.meta_path == meta_path
    assert not [name for name in sys.modules if name.startswith("easyeditor")]


def test_submodules_imported_later_have_placeholders_too(
    no_framework: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(compat.HOME, str(fake_checkout(tmp_path, "from . import lazy\n")))
    path = sys.path[:]
    found = compat.framework()
    assert found.edition == "checkout"
    assert found.module.lazy.answer() == 7
    assert sys.path == path
    if importlib.util.find_spec("torchvision") is None:
        assert isinstance(sys.modules["easyeditor.part"].torchvision, Placeholder)


def test_framework_imported_before_is_used_and_the_wheel_is_warned_about(
    no_framework: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = ModuleType("easyeditor")
    module.__file__ = str(tmp_path / "easyeditor" / "__init__.py")
    monkeypatch.setitem(sys.modules, "easyeditor", module)
    monkeypatch.setenv(compat.HOME, str(tmp_path / "nowhere"))
    with caplog.at_level(logging.WARNING):
        found = compat.framework()
    assert found == compat.Framework(module, "wheel", (tmp_path / "easyeditor").resolve())
    assert "import zerounlearn.easyedit first" in caplog.text


def test_something_else_of_that_name_is_refused(no_framework: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easyeditor", ModuleType("easyeditor"))
    with pytest.raises(FrameworkError, match="no EasyEdit package"):
        compat.framework()


def execute(source: str, **names: Any) -> dict[str, Any]:
    """The namespace of `source`, run as a module of EasyEdit in which only `absent_package` is optional."""
    builtins = guarded_builtins(names, optional={"absent_package": "pip install absent"})
    namespace: dict[str, Any] = {"__name__": "module", "__builtins__": builtins}
    exec(textwrap.dedent(source), namespace)
    return namespace


def test_every_form_of_import_yields_a_placeholder() -> None:
    namespace = execute(
        """
        import absent_package
        import absent_package.a.b
        import absent_package.a.b as renamed
        from absent_package.a import Thing
        from absent_package.a import *
        """
    )
    assert isinstance(namespace["absent_package"], Placeholder)
    for name, path in {"renamed": "absent_package.a.b", "Thing": "absent_package.a.Thing"}.items():
        with pytest.raises(FrameworkError, match=f"{path}, .*: pip install absent"):
            namespace[name]()
    assert "absent_package" not in sys.modules


@pytest.mark.parametrize("statement", ["import other_absent", "from os import nothing_such", "import os.nothing"])
def test_other_failures_to_import_are_not_hidden(statement: str) -> None:
    with pytest.raises(ImportError, match=r"other_absent|nothing"):
        execute(statement)


def test_installed_but_broken_package_keeps_its_own_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "absent_package.py").write_text("import its_missing_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="its_missing_dependency"):
        execute("import absent_package")


def test_installed_package_is_never_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "absent_package.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    try:
        assert execute("from absent_package import VALUE")["VALUE"] == 3
    finally:
        sys.modules.pop("absent_package", None)


def test_placeholder_serves_annotations_and_isinstance_and_subclassing() -> None:
    namespace = execute(
        """
        from typing import Optional
        from absent_package import Image, Base, transform

        class Child(Base):
            def __init__(self):
                self.ready = True

        def f(image: Optional[Image.Image] = None, g: transform["key"] = None):
            return isinstance(image, Image.Image)

        result = f(3)
        """
    )
    assert namespace["result"] is False
    assert issubclass(namespace["Child"], object)
    with pytest.raises(FrameworkError, match=r"absent_package\.Base"):
        namespace["Child"]()


USES: dict[str, Callable[[Any], Any]] = {
    "call": lambda thing: thing(1, key=2),
    "call of an attribute": lambda thing: thing.inner.deeper(),
    "call of an item": lambda thing: thing["key"](),
    "decoration": lambda thing: thing(lambda: None),
    "setting": lambda thing: setattr(thing, "api_key", "secret"),
}


@pytest.mark.parametrize("use", USES)
def test_real_use_of_a_placeholder_is_an_import_error(use: str) -> None:
    with pytest.raises(FrameworkError, match=r"package\.part.*: pip install package") as caught:
        USES[use](Placeholder("package.part", "pip install package"))
    assert isinstance(caught.value, ImportError)


def test_placeholder_survives_copying_and_denies_protocols() -> None:
    placeholder = Placeholder("package.part", "pip install package")
    with pytest.raises(FrameworkError, match=r"package\.part\.x,"):
        copy.deepcopy(placeholder).x()
    assert not hasattr(placeholder, "__path__")
    assert not hasattr(placeholder, "__array__")


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (0, "cuda:0"),
        ("1", "cuda:1"),
        ("cpu", "cpu"),
        ("cuda:1", "cuda:1"),
        (" mps ", "mps"),
        (torch.device("cpu"), "cpu"),
        (torch.device("cuda", 2), "cuda:2"),
    ],
)
def test_device_name(device: object, expected: str) -> None:
    assert legacy.device_name(device) == expected


@pytest.mark.parametrize("available", [True, False])
@pytest.mark.parametrize("unset", [None, ""])
def test_unset_device_is_the_accelerator_if_any(
    monkeypatch: pytest.MonkeyPatch, unset: object, available: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert legacy.device_name(unset) == ("cuda" if available else "cpu")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('f"cuda:{x}"', "cpu"),
        ("f'cuda:{hparams.device}'", "cuda:3"),
        ("f'cuda:{devices[0]}'", "cuda:1"),
        ('torch.device(f"cuda:{x}")', torch.device("cpu")),
        ('(lambda: [f"cuda:{x}"])()', ["cpu"]),
        # Everything else keeps its meaning.
        ('f"cuda:{x!r}"', "cuda:'cpu'"),
        ('f"cuda:{x:>5}"', "cuda:  cpu"),
        ('f"cuda:{x}/{x}"', "cuda:cpu/cpu"),
        ('f"on cuda:{x}"', "on cuda:cpu"),
        ('f"{x}"', "cpu"),
        ('"cuda:{x}"', "cuda:{x}"),
    ],
)
def test_rewriting_of_device_strings(source: str, expected: object) -> None:
    class Hparams:
        device = 3

    code = compile(legacy.rewrite_devices(f"value = {source}"), "<test>", "exec")
    builtins = guarded_builtins({legacy.DEVICE_FUNCTION: legacy.device_name})
    namespace = {"__builtins__": builtins, "x": "cpu", "hparams": Hparams, "devices": [1], "torch": torch}
    exec(code, namespace)
    assert namespace["value"] == expected


def test_rewritten_code_keeps_its_line_numbers() -> None:
    source = 'def f(x):\n\n    return [f"cuda:{x}",\n            f"cuda:{x.missing}"]\n'
    code = compile(legacy.rewrite_devices(source), "<test>", "exec")
    namespace: dict[str, Any] = {"__builtins__": guarded_builtins({legacy.DEVICE_FUNCTION: legacy.device_name})}
    exec(code, namespace)
    with pytest.raises(AttributeError) as caught:
        namespace["f"](0)
    assert caught.traceback[-1].lineno + 1 == 4  # pytest counts from 0


def test_every_device_string_of_the_wheel_is_rewritten() -> None:
    def starting_with_cuda(tree: ast.AST) -> int:
        return sum(
            isinstance(node, ast.JoinedStr)
            and isinstance(node.values[0], ast.Constant)
            and str(node.values[0].value).startswith("cuda")
            for node in ast.walk(tree)
        )

    before = after = 0
    for file in wheel_location().rglob("*.py"):
        source = file.read_bytes()
        before += starting_with_cuda(ast.parse(source))
        after += starting_with_cuda(legacy.rewrite_devices(source, str(file)))
    assert before > 40
    assert after == 0


def test_checkpoint_tokenizer_owns_only_what_it_loaded(checkpoint: Path) -> None:
    loaded = legacy.CheckpointTokenizer.from_pretrained(checkpoint)
    other = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    assert isinstance(loaded, legacy.CheckpointTokenizer)
    assert not isinstance(other, legacy.CheckpointTokenizer)
    assert not isinstance(3, legacy.CheckpointTokenizer)
    assert loaded.decode(loaded.encode("The capital of France is")) == "The capital of France is"


@pytest.mark.parametrize("keyword", ["dtype", "torch_dtype"])
def test_requested_dtype_wins_over_single_precision(keyword: str) -> None:
    class Auto:
        @staticmethod
        def from_pretrained(*args: object, **kwargs: object) -> object:
            return args, kwargs

    loader = legacy._single_precision(Auto)
    assert loader.from_pretrained("name", **{keyword: torch.float16}) == (("name",), {keyword: torch.float16})
    assert loader.from_pretrained("name", device_map=None) == (
        ("name",),
        {"device_map": None, "dtype": torch.float32},
    )

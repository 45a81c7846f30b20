"""The certificate: what each grade takes, that nothing can be changed unseen, signatures, and the page."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import zerounlearn as zu
from tests.audit.conftest import TEXT, Forgetful, facts
from zerounlearn.audit.certificate import Certificate, digest, for_card, graded, verify
from zerounlearn.audit.page import page
from zerounlearn.audit.registry import Access
from zerounlearn.audit.results import Attacked, Audit, AuditedFact, Variant
from zerounlearn.audit.run import run_audit
from zerounlearn.audit.signature import SIGNATURE, check_key, sign, wrong_signature
from zerounlearn.audit.target import Finding, Outcome, Point
from zerounlearn.cli import main
from zerounlearn.errors import AuditError

GRADED = [access for access in Access if access is not Access.BASE]


def outcome(found: int, alarms: int = 0, **changes: Any) -> Outcome:
    """Of ten facts and twenty controls, the first found."""
    controls = [Finding(i < alarms, 0.0) for i in range(20)]
    return Outcome(
        "",
        tuple(Finding(i < found, 1.0, "by <b>that</b>") for i in range(10)),
        tuple(tuple(controls[2 * i : 2 * i + 2]) for i in range(10)),
        **changes,
    )


def made(found: dict[Access, Outcome]) -> Audit:
    """An audit of one attack a kind."""
    attacked = [
        Attacked(
            access.name,
            "a source",
            {},
            (Variant(access.name, f"By {access.value}", access.name, edited, outcome(10)),),
            (100 * (access.level + 1), 100),
        )
        for access, edited in found.items()
    ]
    told = tuple(AuditedFact(f"<i>{i}</i> is", "an answer", ("Vorl", "Tasm")) for i in range(10))
    return Audit(told, 0, tuple(attacked), {"more": "no time"}, 0.01, {"budget": "quick"}, {"code": "x"}, {})


@pytest.mark.parametrize(("access", "grade"), list(zip(GRADED, "FEDCCB", strict=True)))
def test_a_grade_is_what_an_attacker_must_have(access: Access, grade: str) -> None:
    quiet = {each: outcome(0) for each in GRADED}
    assert graded(made(quiet)) == "A"
    assert graded(made(quiet | {access: outcome(1)})) == grade
    assert graded(made(quiet | {access: outcome(10, 20)})) == "A", "controls come back as often"
    assert graded(made({each: found for each, found in quiet.items() if each is not access})) == grade, "not tested"
    certificate = Certificate.of(made(quiet | {access: outcome(1)}))
    assert certificate.passed == (grade in "ABC")
    assert any(access.value in line for line in certificate.statements)


def test_a_statistical_finding_counts_by_its_p_and_the_base_model_not_at_all() -> None:
    quiet = {each: outcome(0) for each in GRADED}
    few, many = (outcome(found, 1, statistical=True) for found in (2, 9))
    assert graded(made(quiet | {Access.OUTPUTS: few})) == "A"
    assert made(quiet | {Access.OUTPUTS: few}).against(0) == []
    assert graded(made(quiet | {Access.OUTPUTS: many})) == "D"
    by_base = made(quiet | {Access.BASE: outcome(10)})
    assert (graded(by_base), by_base.against(0)) == ("A", [])
    of_the_subject = made(quiet | {Access.OUTPUTS: outcome(10, 0, statistical=True, beside=True)})
    assert (graded(of_the_subject), of_the_subject.against(0)) == ("A", [])


def test_the_least_effort_comes_first() -> None:
    audit = made({Access.WEIGHTS: outcome(3), Access.PROMPTS: outcome(1), Access.TRAINING: outcome(10)})
    assert [variant.access for variant, _ in audit.against(0)] == ["PROMPTS", "WEIGHTS", "TRAINING"]
    assert [(variant.access, tokens) for variant, tokens in audit.against(9)] == [("TRAINING", 600)]


@pytest.fixture
def audited(forgetful: Forgetful, tmp_path: Path) -> Audit:
    audit = run_audit(forgetful.model, forgetful.tokenizer, facts(), forgetful.edit, only=["plain"], text=TEXT)
    audit.save(tmp_path)
    Certificate.of(audit).save(tmp_path)
    return audit


def test_a_certificate_is_of_its_audit_models_and_facts(audited: Audit, forgetful: Forgetful, tmp_path: Path) -> None:
    given: dict[str, Any] = {"edited": forgetful.model, "facts": facts()}
    assert verify(tmp_path, **given) == ([], ["base: not given"])
    wrong, unchecked = verify(tmp_path, edited=forgetful.model, base=forgetful.model, facts=facts()[1:])
    assert wrong == ["base: not what was audited", "facts: not what was audited"]
    assert unchecked == []
    assert verify(tmp_path, facts=facts(), key=b"another's key")[0] == ["facts: not what was audited"]
    assert Certificate.load(tmp_path).audit == digest(audited) == digest(replace(audited, seconds={"plain": 9.0}))


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("audit.json", '"unknown": 0', '"unknown": 1'),
        ("audit.json", '"found": false', '"found": true'),
        ("certificate.json", '"passed": false', '"passed": true'),
        ("certificate.json", '"grade": "E"', '"grade": "A"'),
    ],
)
@pytest.mark.usefixtures("audited")
def test_what_was_changed_is_found(tmp_path: Path, file: str, old: str, new: str) -> None:
    text = (tmp_path / file).read_text()
    if '"found"' in old:  # findings are rows
        old, new = "   false,", "   true,"
        old, new = next(((o, n) for o, n in ((old, new), ("false,", "true,")) if o in text))
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    assert verify(tmp_path)[0]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"grade": "A", "more": 1}'])
@pytest.mark.usefixtures("audited")
def test_what_is_no_certificate_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "certificate.json").write_text(text)
    with pytest.raises(AuditError, match="is no certificate"):
        verify(tmp_path)


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    made = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(private)]
    subprocess.run(made, check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", private, "-pubout", "-out", public], check=True, capture_output=True)
    return private, public


@pytest.mark.usefixtures("audited")
def test_a_signature_is_of_one_certificate_and_one_key(tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    private, public = keys(tmp_path, "own")
    _, other = keys(tmp_path, "other")
    with pytest.raises(AuditError, match="was not signed"):
        wrong_signature(tmp_path, public)
    check_key(private)
    sign(tmp_path, private)
    assert (tmp_path / SIGNATURE).is_file()
    assert wrong_signature(tmp_path, public) is None
    assert "this key" in str(wrong_signature(tmp_path, other))
    (tmp_path / "certificate.json").write_text((tmp_path / "certificate.json").read_text().replace("grade", "Grade"))
    assert wrong_signature(tmp_path, public) is not None
    for bad in (tmp_path / "audit.json", tmp_path / "missing"):
        with pytest.raises(AuditError, match="is no private key in PEM"):
            check_key(bad)
        with pytest.raises(AuditError, match="is no public key in PEM"):
            wrong_signature(tmp_path, bad)


def test_the_page_says_all_and_escapes_all() -> None:
    curve = tuple(Point(x, x / 10, 0.0) for x in range(3))
    audit = made({Access.PLAIN: outcome(0), Access.PROMPTS: outcome(2, curve=curve, axis="<steps>")})
    shown = page(audit, Certificate.of(audit))
    assert "<i>" not in shown and "&lt;i&gt;0&lt;/i&gt; is" in shown
    assert "by &lt;b&gt;that&lt;/b&gt;" in shown
    assert shown.count("●") == 3  # two facts and the legend
    assert "Grade E" in shown and "no time" in shown
    assert "data:image/svg+xml;base64," in shown
    assert "http" not in shown.replace("http-equiv", "")
    without = made({Access.PLAIN: outcome(0)})
    assert "Recovery curves" not in page(without, Certificate.of(without))


def test_a_redacted_audit_has_digests_and_the_same_numbers(audited: Audit, forgetful: Forgetful) -> None:
    from zerounlearn.redaction import Redaction

    words = ["France", "Paris", "Tolstoy", "Janeiro", "Portuguese"]
    more = run_audit(forgetful.model, forgetful.tokenizer, facts(), forgetful.edit, only=["wording"], text=TEXT)
    redaction = Redaction(b"0123456789abcdef", [text for fact in facts() for text in fact.request.query[:2]])
    silent = more.redacted(redaction)
    text = silent.to_json() + page(silent, Certificate.of(silent))
    assert any(word in more.to_json() for word in words)
    assert not [word for word in words if word in text]
    assert json.loads(text.split("\n<")[0])["format"] == 1
    assert graded(silent) == graded(more)
    assert [v.edited.share for v in silent.variants] == [v.edited.share for v in more.variants]
    assert zu.Audit is Audit and audited.unknown == 0


def test_a_card_has_the_audits_table_and_no_fact(audited: Audit, forgetful: Forgetful, tmp_path: Path) -> None:
    audit = run_audit(
        forgetful.model, forgetful.tokenizer, facts(), forgetful.edit, only=["plain", "wording"], text=TEXT
    )
    audit.save(tmp_path)
    forgetful.edit.save(tmp_path / "edit.safetensors")
    place = tmp_path / "README.md"
    command = ["card", str(tmp_path / "edit.safetensors"), "--audit", str(tmp_path), "--output", str(place)]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 0, result.output
    card = place.read_text()
    assert f"## Audit: grade {graded(audit)}" in card
    for variant in audit.variants:
        shares = (variant.edited.share, variant.edited.alarms, variant.ceiling.share)
        assert f"| {variant.label} | {' | '.join(f'{100 * share:.0f}' for share in shares)} |" in card
    assert "wording" in for_card(audited).not_tested
    assert not [word for word in ("France", "Paris", "Tolstoy") if word in card]

"""`lenskeep bundle …`: make, sign, verify and understand bundles. Everything here works without a device."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import click
import msgspec

from lenskeep.bundle import builder, diff, disk, draft, keys, recipe
from lenskeep.bundle import look as looks
from lenskeep.bundle.archive import VerifiedBundle
from lenskeep.bundle.draft import Draft
from lenskeep.bundle.signing import SIGNATURE_NAME
from lenskeep.cli import packing, trying
from lenskeep.cli.commands import bundle_words as words
from lenskeep.cli.output import Progress, emit, fail, screen_of
from lenskeep.cli.words import exit_of, plural
from lenskeep.clock import Clock
from lenskeep.config import Trial
from lenskeep.errors import RequestError

PATH = click.Path(path_type=Path)
SUFFIX = ".lkb"

key_option = click.option("--key", "key_path", type=PATH, help="Private key to sign with (PEM, P-256).")
passphrase_option = click.option("--passphrase-file", type=PATH, help="File whose first line opens the key.")
trust_option = click.option("--key", "trusted", type=PATH, multiple=True, help="Public key that you trust; repeatable.")
out_option = click.option("--out", type=PATH, default=Path(), help="Folder for the result, or the .lkb file itself.")


@click.group()
def bundle() -> None:
    """Make, sign, verify and compare bundles (.lkb).

    \b
    lenskeep bundle pack model.onnx --name weld-seam --version 1.4.0 … --key team.pem
    lenskeep bundle verify weld-seam-1.4.0.lkb --key team.pub
    lenskeep bundle diff weld-seam-1.3.0.lkb weld-seam-1.4.0.lkb
    """


# --- making ---------------------------------------------------------------------------------------------------------


def _recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command one option per word of the recipe."""
    for name, (kind, text) in reversed(recipe.fields().items()):
        if name != "model":
            add = click.option(f"--{name.replace('_', '-')}", name, help=text, **_option_kind(kind))
            command = add(command)
    return command


def _option_kind(kind: Any) -> dict[str, Any]:
    if kind is bool:
        return {"is_flag": True, "default": None}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind))}
    if get_origin(kind) is list:
        return {"type": str, "metavar": "A,B,…"}
    return {"type": kind}


def _said(given: dict[str, Any]) -> dict[str, Any]:
    """Keep what was said on the command line, with lists taken apart."""
    said: dict[str, Any] = {}
    for name, (kind, _) in recipe.fields().items():
        value = given.get(name)
        if value in (None, ""):
            continue
        if get_origin(kind) is list and name != "labels":
            value = _listed(name, value, get_args(kind)[0])
        said[name] = value
    return said


def _listed(name: str, text: str, kind: Callable[[str], Any]) -> list[Any]:
    try:
        return [kind(part.strip()) for part in text.split(",") if part.strip()]
    except ValueError as error:
        raise RequestError(f"--{name.replace('_', '-')}: {text!a} is not a list of numbers.") from error


@bundle.command()
@click.argument("folder", type=PATH)
@click.option("--model", type=PATH, help="The ONNX file that is to be packed.")
@click.pass_context
def init(context: click.Context, folder: Path, model: Path | None) -> None:
    """Begin a FOLDER with a commented pack.toml and a place for golden pictures.

    \b
    lenskeep bundle init weld-seam --model best.onnx
    """
    target = folder / recipe.RECIPE_NAME
    if target.exists():
        raise RequestError(f"{target} is there already. Nothing was changed.")
    said: dict[str, Any] = {"name": folder.resolve().name.lower(), "version": "0.1.0", "golden": "golden"}
    if model is not None:
        draft.examine(model, control_flow_allowed=True)
        said["model"] = os.path.relpath(model, folder)
    (folder / "golden").mkdir(parents=True, exist_ok=True)
    target.write_text(recipe.template(said), encoding="utf-8")
    emit(context, "bundle.init/1", {"path": str(target)}, lambda screen: words.begun(screen, folder, target))


@bundle.command()
@click.argument("source", type=PATH, required=False, metavar="[MODEL.onnx|FOLDER]")
@click.option("--from", "toml", type=PATH, help="A pack.toml with the same words; flags go before it.")
@_recipe_options
@key_option
@passphrase_option
@out_option
def pack(
    source: Path | None, toml: Path | None, key_path: Path | None,
    passphrase_file: Path | None, out: Path, **given: Any,
) -> None:  # fmt: skip
    """Make a bundle of an ONNX file, or of a FOLDER with a pack.toml or a model.json.

    With --key a signed .lkb, without it an unsigned draft folder. What is not said is read from the model or from a
    stated custom, and listed; what decides results and stands nowhere is asked for.

    \b
    lenskeep bundle pack best.onnx --name weld-seam --version 1.4.0 --ok ok --ng porosity,crack \\
        --latency-ms 40 --memory-mb 300 --golden golden --license AGPL-3.0 --key team.pem
    lenskeep bundle pack weld-seam/ --key team.pem --out release/
    lenskeep bundle pack --from weld-seam/pack.toml --version 1.4.1
    """
    context = click.get_current_context()
    key = _signing_key(context, key_path, passphrase_file) if key_path else None
    made = _draft_of(source, toml, _said(given))
    if key is None:
        folder = out / made.stem
        _write_folder(made, folder)
        data = {"path": str(folder), "bundle": made.manifest.ref, "inferred": made.manifest.provenance.inferred}
        emit(context, "bundle.pack/1", data, lambda screen: words.drafted(screen, made, folder), made.warnings)
        return
    path = _target(out, made.stem)
    verified = builder.build(path, made.parts, key, made.stem)
    _emit_signed(context, "bundle.pack/1", path, verified, made.warnings)


def _draft_of(source: Path | None, toml: Path | None, said: dict[str, Any]) -> Draft:
    if source is not None and source.is_dir():
        if not (source / recipe.RECIPE_NAME).is_file():
            if said:
                raise RequestError(f"{source} has no {recipe.RECIPE_NAME}; its model.json takes no flags beside it.")
            return draft.from_folder(source)
        toml = source / recipe.RECIPE_NAME
    elif source is not None:
        said["model"] = str(source)
    return packing.make_draft(recipe.compose(said, toml))


@bundle.command()
@click.argument("source", type=PATH, metavar="FOLDER|FILE")
@key_option
@passphrase_option
@click.option("--signed-by", type=PATH, help="Public key; FOLDER holds a model.sig that another tool made with it.")
@click.option("--trust", "trusted", type=PATH, multiple=True, help="FILE: public key that signed it before.")
@click.option("--out", type=PATH, help="Folder for the result, or the .lkb file itself (beside SOURCE, or SOURCE).")
@click.pass_context
def sign(
    context: click.Context, source: Path, key_path: Path | None, passphrase_file: Path | None, signed_by: Path | None,
    trusted: tuple[Path, ...], out: Path | None,
) -> None:  # fmt: skip
    """Sign a draft FOLDER, or sign a bundle FILE anew with another key.

    \b
    lenskeep bundle sign weld-seam-1.4.0 --key team.pem
    model_signing sign pkcs11-key … && lenskeep bundle sign weld-seam-1.4.0 --signed-by hsm.pub
    """
    if signed_by is not None:
        _take_signature(context, source, signed_by, out)
        return
    key = _signing_key(context, key_path, passphrase_file)
    if not source.is_dir():
        _sign_anew(context, source, trusted, key, out)
        return
    made = draft.from_folder(source)
    path = _target(out or source.parent, made.stem)
    _emit_signed(context, "bundle.sign/1", path, builder.build(path, made.parts, key, made.stem), made.warnings)


@bundle.command()
@click.argument("file", type=PATH)
@click.option("--trust", "trusted", type=PATH, multiple=True, required=True, help="Public key that signed it before.")
@key_option
@passphrase_option
@click.option("--out", type=PATH, help="Folder for the result, or the .lkb file itself (FILE).")
@click.pass_context
def resign(
    context: click.Context, file: Path, trusted: tuple[Path, ...], key_path: Path | None, passphrase_file: Path | None,
    out: Path | None,
) -> None:  # fmt: skip
    """Verify a bundle FILE with the old key and sign the same content with a new one.

    \b
    lenskeep bundle resign weld-seam-1.4.0.lkb --trust team.pub --key plant.pem
    """
    _sign_anew(context, file, trusted, _signing_key(context, key_path, passphrase_file), out)


def _sign_anew(
    context: click.Context, file: Path, trusted: Iterable[Path], key: keys.PrivateKey, out: Path | None
) -> None:
    """Give proven content a new signature; the old one is checked first, so that nothing unproven gets a good name."""
    trust = packing.load_trust(list(trusted)) or builder.trust_of({"your key": key.public})
    with tempfile.TemporaryDirectory(prefix="lenskeep-") as name:
        disk.extract(file, Path(name) / "bundle", trust, Clock().now_s())
        made = draft.from_folder(Path(name) / "bundle")
        path = _target(out, made.stem) if out else file
        verified = builder.build(path, made.parts, key, made.stem)
    _emit_signed(context, "bundle.sign/1", path, verified, made.warnings)


def _take_signature(context: click.Context, folder: Path, signed_by: Path, out: Path | None) -> None:
    """Make a bundle file of a folder that another OpenSSF tool has signed."""
    made = draft.from_folder(folder)
    path = _target(out or folder.parent, made.stem)
    signature = packing.read_signature(folder / SIGNATURE_NAME)
    verified = builder.assemble(path, made.parts, signature, keys.admit(packing.read_small(signed_by)))
    _emit_signed(context, "bundle.sign/1", path, verified, made.warnings)


def _signing_key(context: click.Context, path: Path | None, passphrase_file: Path | None) -> keys.PrivateKey:
    if path is None:
        raise RequestError("Say --key: the private key to sign with.", hint="Make one with `lenskeep keys gen NAME`.")
    passphrase = None
    if passphrase_file is not None:
        passphrase = packing.read_small(passphrase_file).decode("utf-8", "replace").split("\n")[0].rstrip("\r")
    elif packing.is_encrypted(path):
        if screen_of(context).json or not sys.stdin.isatty():
            raise RequestError(f"The key {path} is encrypted.", hint="Give its passphrase with --passphrase-file FILE.")
        passphrase = click.prompt(f"Passphrase of {path}", hide_input=True, err=True, type=str)
    return packing.load_key(path, passphrase)


def _target(out: Path, stem: str) -> Path:
    return out if out.suffix == SUFFIX else out / f"{stem}{SUFFIX}"


def _write_folder(made: Draft, folder: Path) -> None:
    if folder.exists():
        raise RequestError(f"{folder} is there already. Nothing was changed.")
    for name, part in made.parts.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(part, bytes):
            target.write_bytes(part)
        else:
            shutil.copyfile(part, target)


def _emit_signed(
    context: click.Context, schema: str, path: Path, verified: VerifiedBundle, warnings: tuple[str, ...]
) -> None:
    data = {
        "path": str(path), "bundle": verified.manifest.ref, "digest": verified.digest, "key": verified.key_id,
        "size_bytes": verified.size_bytes, "inferred": verified.manifest.provenance.inferred,
    }  # fmt: skip
    emit(context, schema, data, lambda screen: words.packed(screen, path, verified), warnings)


# --- understanding --------------------------------------------------------------------------------------------------


@bundle.command()
@click.argument("source", type=PATH, metavar="FILE|FOLDER")
@trust_option
@click.pass_context
def verify(context: click.Context, source: Path, trusted: tuple[Path, ...]) -> None:
    """Check signature, content, description and model of a bundle, as a device does that trusts these keys.

    \b
    lenskeep bundle verify weld-seam-1.4.0.lkb --key team.pub
    """
    trust = packing.load_trust(trusted)
    if trust is None:
        raise RequestError("Say --key: the public key that you trust.", hint="Ask the maker for it by another way.")
    seen = looks.look(source, trust, Clock().now_s())
    if not seen.signer:
        raise RequestError(f"{source} is a draft; nobody has signed it.", hint="lenskeep bundle sign FOLDER --key KEY")
    facts = looks.check_model_of(seen)
    data = {**words.summary(seen), "opset": facts.opset, "nodes": facts.nodes, "parameters": facts.parameters}
    emit(context, "bundle.verify/1", data, lambda screen: words.verified(screen, seen, facts), words.misnamed(seen))


@bundle.command()
@click.argument("source", type=PATH, metavar="FILE|FOLDER")
@trust_option
@click.option("--manifest", "whole", is_flag=True, help="Print model.json as it is signed.")
@click.pass_context
def inspect(context: click.Context, source: Path, trusted: tuple[Path, ...], whole: bool) -> None:
    """Show what a bundle says about itself: contract, files, signer, model card.

    \b
    lenskeep bundle inspect weld-seam-1.4.0.lkb
    lenskeep bundle inspect weld-seam-1.4.0.lkb --key team.pub --manifest
    """
    seen = looks.look(source, packing.load_trust(trusted), Clock().now_s())
    card = looks.card_of(seen)
    data = {
        **words.summary(seen), "manifest": msgspec.json.decode(seen.manifest_json), "card": card,
        "files": [dataclasses.asdict(file) for file in seen.files],
    }  # fmt: skip
    emit(context, "bundle.inspect/1", data, lambda screen: words.inspected(screen, seen, card, whole=whole))


@bundle.command("diff")
@click.argument("old", type=PATH)
@click.argument("new", type=PATH)
@trust_option
@click.pass_context
def diff_command(context: click.Context, old: Path, new: Path, trusted: tuple[Path, ...]) -> None:
    """Say what changed from one bundle to another, the most dangerous first.

    \b
    lenskeep bundle diff weld-seam-1.3.0.lkb weld-seam-1.4.0.lkb
    """
    trust = packing.load_trust(trusted)
    now_s = Clock().now_s()
    before, after = looks.look(old, trust, now_s), looks.look(new, trust, now_s)
    changes = diff.compare(before, after)
    data = {"old": words.summary(before), "new": words.summary(after), "changes": changes}
    emit(context, "bundle.diff/1", data, lambda screen: words.compared(screen, before, after, changes))


@bundle.command()
@click.argument("file", type=PATH)
@click.argument("folder", type=PATH)
@trust_option
@click.pass_context
def extract(context: click.Context, file: Path, folder: Path, trusted: tuple[Path, ...]) -> None:
    """Unpack a bundle FILE into a new FOLDER that OpenSSF's `model_signing` verifies too.

    \b
    lenskeep bundle extract weld-seam-1.4.0.lkb weld-seam --key team.pub
    """
    trust = packing.load_trust(trusted)
    if trust is not None:
        disk.extract(file, folder, trust, Clock().now_s())
    seen = looks.look(file, trust, Clock().now_s())
    if trust is None:
        looks.unpack(seen, folder)
    data = {**words.summary(seen), "folder": str(folder)}
    emit(context, "bundle.extract/1", data, lambda screen: words.extracted(screen, seen, folder))


@bundle.command()
@click.argument("source", type=PATH, metavar="FILE|FOLDER")
@trust_option
@click.option("--threads", type=click.IntRange(1, 64), default=1, help="Threads of one inference.")
@click.option("--frames", type=click.IntRange(10, 10000), default=Trial().frames, help="Frames to measure.")
@click.pass_context
def test(context: click.Context, source: Path, trusted: tuple[Path, ...], threads: int, frames: int) -> None:
    """Try a bundle or a draft on this machine: golden pictures, latency, memory, as a device does before it accepts it.

    \b
    lenskeep bundle test weld-seam-1.4.0.lkb
    """
    packing.require_runtime()
    seen = looks.look(source, packing.load_trust(trusted), Clock().now_s())
    looks.check_model_of(seen)
    screen = screen_of(context)
    progress = Progress(screen)
    report = trying.try_bundle(
        seen, Trial(frames=frames), threads=threads,
        heard=lambda message: progress.show(message.stage, f"{message.done} of {plural(message.total, 'step')}"),
    )  # fmt: skip
    progress.clear()
    data = {**words.summary(seen), "report": report}
    emit(context, "bundle.test/1", data, lambda screen: words.tried(screen, seen, report))
    if not report.passed:
        fault = trying.fault_of(report)
        context.exit(exit_of(fault) if screen.json else fail(screen, fault))

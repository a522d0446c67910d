"""Outputs that can't be written where they are asked for, and sources that are none."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

from tests.integration.damage.tools import Damage, leave, shards

from moesaic.cli import run


def damages() -> Iterator[Damage]:
    yield from _outputs()
    yield from _partials()
    yield from _sources()


def _to(out: str, *args: str) -> tuple[str, ...]:
    return ("upcycle", "{work}/src", out, "--no-certify", "--experts", "sparse_upcycling", *args)


def _folder(name: str, file: str = "notes.txt") -> Callable[[Path], None]:
    def harm(work: Path) -> None:
        (work / name).mkdir()
        (work / name / file).write_text("mine")

    return harm


def _link(name: str, target: str) -> Callable[[Path], None]:
    return lambda work: (work / name).symlink_to(target)


def _outputs() -> Iterator[Damage]:
    for out in ("{work}/src", "{work}/src/", "{work}/src/moe", "{work}/src/a/b", "{work}/bystander/../src/moe",
                "{work}", "{work}/..", "{work}/bystander"):  # fmt: skip
        for flags in ((), ("--overwrite",), ("--resume",)):
            yield Damage(f"output at {out} {' '.join(flags)}", leave, "output folder", command=_to(out, *flags))
    yield Damage("output is a file", leave, "out.txt", command=_to("{work}/out.txt"))
    yield Damage("output below a file", leave, "out.txt", command=_to("{work}/out.txt/moe"))
    yield Damage("output has a long name", leave, "too long", command=_to("{work}/" + "x" * 300))
    yield Damage("output is /", leave, "/:", command=_to("/"))
    yield Damage("output in /proc", leave, "/proc/moesaic", command=_to("/proc/moesaic"))
    yield Damage("output is a device", leave, "/dev/null", command=_to("/dev/null"))
    yield Damage("output links to the source", _link("link", "src"), "src", command=_to("{work}/link"))
    yield Damage("output links into the source", _link("link", "src/moe"), "link", command=_to("{work}/link"))
    yield Damage("output is a loop of links", _link("link", "link"), "link", command=_to("{work}/link"))
    yield Damage("output is somebody's folder", _folder("mine"), "mine", command=_to("{work}/mine"))
    yield Damage("overwriting somebody's folder", _folder("mine"), "mine", command=_to("{work}/mine", "--overwrite"))
    yield Damage("OUT.replaced is somebody's", _folder("out.replaced"), "out.replaced", ("--overwrite",))


def _partials() -> Iterator[Damage]:
    for flags in ((), ("--overwrite",), ("--resume",)):
        name = " ".join(flags)
        yield Damage(f"OUT.partial is somebody's {name}", _folder("moe.partial"), "moe.partial",
                     command=_to("{work}/moe", *flags))  # fmt: skip
        yield Damage(f"OUT.partial is a link {name}", _link("moe.partial", "bystander"), "moe.partial",
                     command=_to("{work}/moe", *flags))  # fmt: skip
        yield Damage(f"OUT.partial is a file {name}", lambda work: (work / "moe.partial").write_text("") and None,
                     "moe.partial", command=_to("{work}/moe", *flags))  # fmt: skip
    yield Damage("an interrupted run is in the way", _folder("out.partial", "journal"), "--resume")
    for name, text in {
        "zeros": "\0" * 50,
        "a line of text": "hello\n",
        "a list": "[]\n",
        "no digest": '{"boot": ""}\n',
        "another digest": '{"digest": "x", "boot": ""}\n',
        "latin-1": "\xff\xfe\n",
    }.items():

        def harm(work: Path, text: str = text) -> None:
            (work / "out.partial").mkdir()
            (work / "out.partial" / "journal").write_text(text, encoding="latin-1")

        if name != "zeros":  # without a newline nothing was journalled: the run starts again
            yield Damage(f"journal holds {name}", harm, "out.partial", ("--resume",))


def _sources() -> Iterator[Damage]:
    def at(source: str) -> tuple[str, ...]:
        return ("upcycle", source, "{work}/out", "--no-certify")

    def only(*keep: str) -> Callable[[Path], None]:
        def harm(work: Path) -> None:
            for file in (work / "src").iterdir():
                if file.name not in keep:
                    file.unlink()

        return harm

    def pickled(work: Path) -> None:
        only("config.json")(work)
        (work / "src" / "pytorch_model.bin").write_bytes(b"\x80\x04")

    def adapter(work: Path) -> None:
        only()(work)
        (work / "src" / "adapter_config.json").write_text("{}")
        (work / "src" / "adapter_model.safetensors").write_bytes(b"")

    def already(work: Path) -> None:
        with redirect_stdout(io.StringIO()):
            assert run([*_to("{work}/moe")[:1], f"{work}/src", f"{work}/moe", *_to("")[3:]]) == 0

    yield Damage("source is not there", leave, "nowhere", command=at("{work}/nowhere"))
    yield Damage("source is empty text", leave, "source", command=at(""))
    yield Damage("source is a text file", leave, "out.txt", command=at("{work}/out.txt"))
    yield Damage("source is no model", leave, "bystander", command=at("{work}/bystander"))
    yield Damage(
        "source is one shard", leave, ".safetensors", command=at("{work}/src/model-00001-of-00003.safetensors")
    )
    yield Damage("source is config.json", leave, "config.json", command=at("{work}/src/config.json"))
    yield Damage("source has no weights", only("config.json"), "safetensors")
    yield Damage("source has an index alone", only("config.json", "model.safetensors.index.json"), "safetensors")
    yield Damage("source is pickled", pickled, "pytorch_model.bin")
    yield Damage("source is an adapter", adapter, "adapter")
    yield Damage("source is a MoE already", already, "dense", command=at("{work}/moe"))
    yield Damage("source has lost its index", _lose_index, "must be there, as the config says. It is missing.")
    yield Damage("source is a misspelt name", leave, "smollm2-135m", command=at("smollm2-135"))


def _lose_index(work: Path) -> None:
    (work / "src" / "model.safetensors.index.json").unlink()
    first, *rest = shards(work)
    for file in rest[1:]:
        file.unlink()
    first.rename(first.with_name("model.safetensors"))

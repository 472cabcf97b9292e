"""The command line: each command starts the graph, asks a running one, or calls the module that does the work."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models.errors import InputError, StageError, WarmTalkError
from models.weights.manifest import names as weight_names
from warmtalk.client.calls import authorization

app = typer.Typer(
    name="warmtalk",
    help="Text or speech in, a talking-head video stream out.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
console = Console(stderr=True)

ConfigOption = Annotated[str, typer.Option(help="A Serve config file, or demo, gpu, cluster.")]
ServerOption = Annotated[str | None, typer.Option(help="URL of a running server; without it one is started.")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="HTTP port; the config's by default.")]


@app.command(epilog='Example: `warmtalk say "Hello there." -o hello.mp4`')
def say(
    text: Annotated[str, typer.Argument(help="What is to be said.")] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="The video to write.")] = Path("out/say.mp4"),
    audio: Annotated[Path | None, typer.Option(help="Say this recording instead of a text.")] = None,
    avatar_id: Annotated[str | None, typer.Option(help="A prepared avatar.")] = None,
    enhance: Annotated[bool | None, typer.Option(help="Restore the face to 512 px.")] = None,
    voice: Annotated[str | None, typer.Option(help="A voice of the TTS engine; a wrong one names them all.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.5, max=2, help="1 is the voice's own pace.")] = None,
    config: ConfigOption = "demo",
    server: ServerOption = None,
    port: PortOption = None,
) -> None:
    """Speak a text (or a recording) and write the video."""
    with _errors():
        _refuse_vain_say(text, audio, output)
        options = {"avatar_id": avatar_id, "enhance": enhance, "voice": voice, "speed": speed}
        with _server(config, server, port) as url:
            summary = _say(url, text, audio, output, options)
        from warmtalk.cli.profiling import summary_table

        Console().print(summary_table(summary))
        size = f"{summary['duration_s']:.1f} s, {output.stat().st_size / 1e6:.1f} MB"
        Console().print(f"[bold green]{escape(str(output))}[/] ({size})")
        Console().print('Try next: make demo TEXT="What you want to hear."   or: make serve, and open its page')


@app.command(epilog="Example: `warmtalk serve --port 8080`")
def serve(config: ConfigOption = "demo", port: PortOption = None) -> None:
    """Serve in the foreground until Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with _errors(), _local(config, port, stop) as graph:
        for line in graph.greeting():
            console.print(line, highlight=False)
        stop.wait()
        console.print("Stopping …")


@app.command(epilog="Example: `warmtalk prepare me.mp4 --avatar-id me`")
def prepare(
    video: Annotated[Path, typer.Argument(help="A video or a picture with a face.")],
    avatar_id: Annotated[str, typer.Option(help="1 to 64 of a-z, 0-9, _ and -.")],
    force: Annotated[bool, typer.Option(help="Replace an avatar of that id.")] = False,
    fps: Annotated[int | None, typer.Option(help="24, 25 or 30; the config's by default.")] = None,
    bbox_shift: Annotated[int | None, typer.Option(help="Moves the crop's upper edge, px.")] = None,
    extra_margin: Annotated[int | None, typer.Option(help="Room below the chin, px.")] = None,
    geometry: Annotated[str | None, typer.Option(help="similarity, box or musetalk.")] = None,
    smoothing: Annotated[str | None, typer.Option(help="zero_phase, one_euro, kalman or none.")] = None,
    affine_tracking: Annotated[bool | None, typer.Option(help="Track the rigid face between landmarks.")] = None,
    scale_lock: Annotated[bool | None, typer.Option(help="One size of crop for all frames.")] = None,
    subpixel: Annotated[bool | None, typer.Option(help="Crops between whole pixels.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE: another key of Avatars' config.")] = None,
    config: ConfigOption = "demo",
    server: ServerOption = None,
) -> None:
    """Prepare an avatar from a video, once, before it speaks."""
    from warmtalk.cli.profiling import report_table

    with _errors():
        if not video.is_file():
            raise InputError(f"Input video not found: {video}.", "Check the path.")
        options: dict[str, Any] = {"fps": fps, "bbox_shift": bbox_shift, "extra_margin": extra_margin}
        options |= {"geometry": geometry, "smoothing": smoothing, "affine_tracking_enabled": affine_tracking}
        options |= {"scale_lock_enabled": scale_lock, "subpixel_enabled": subpixel}
        if server and set_:
            raise InputError("A server prepares by its own config.", "Leave out --set, or --server.")
        if server:
            report = _prepare_remote(server, video, avatar_id, force, options)
        else:
            report = _prepare_here(config, video, avatar_id, force, options, set_ or [])
        Console().print(report_table(report))
        for warning in report.get("warnings", []):
            Console().print(f"[yellow]warning[/] {escape(warning)}")


@app.command(epilog="Example: `warmtalk enhance session.mp4 -o better.mp4`")
def enhance(
    video: Annotated[Path, typer.Argument(help="A finished video, or one that an avatar is to be prepared from.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The video to write: .mp4, .mov or .mkv.")],
    strength: Annotated[float, typer.Option(help="0 leaves the frames as they are, 1 is the full model.")] = 1.0,
    every: Annotated[int, typer.Option(help="Restore each n-th frame; those between take over its detail.")] = 1,
    engine: Annotated[str, typer.Option(help="small, gfpgan, spandrel, or module:Class.")] = "small",
    weights: Annotated[Path | None, typer.Option(help="The engine's file, where it is not the usual one.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda.")] = "cpu",
    address: Annotated[str | None, typer.Option(help="Enhance on the graph of this Ray cluster (auto: here).")] = None,
) -> None:
    """Restore the largest face in every frame of a video; after a crash, the same command goes on."""
    from models.restore.video import VideoOptions
    from warmtalk.cli.enhance import ClusterBackend, LocalBackend, enhance_video

    with _errors(), _bar() as bar:
        task = bar.add_task("loading", total=None, note="")
        options = VideoOptions(strength, every)
        backend = ClusterBackend.connect(address) if address else LocalBackend.load(engine, weights, device)
        bar.columns += (TimeRemainingColumn(),)

        def show(done: int, expected: int) -> None:
            bar.update(task, description="enhancing", completed=done, total=expected, note=f"{done} / {expected}")

        report = enhance_video(video, output, backend, options, progress=show)
    resumed = f", {report.resumed} of them by an earlier run" if report.resumed else ""
    for warning in report.warnings:
        console.print(f"[yellow]warning[/] {escape(warning)}")
    done = f"{report.frames} frames{resumed}, {report.faces} faces restored in {report.seconds:.1f} s"
    Console().print(f"[bold green]{escape(str(output))}[/] ({done})")


@app.command(epilog="Example: `warmtalk profile --json profile.json`")
def profile(
    config: ConfigOption = "demo",
    repeats: Annotated[int, typer.Option(min=1, help="How often each sentence is spoken.")] = 2,
    enhance: Annotated[bool, typer.Option(help="Profile Enhance, too.")] = True,
    json_path: Annotated[Path | None, typer.Option("--json", help="Write the numbers here, too.")] = None,
    port: PortOption = None,
) -> None:
    """Where each stage's time goes, its frames per second at batch 1, 4 and 8, and its memory."""
    from warmtalk.cli import profiling

    with _errors(), _local(config, port), console.status("profiling") as status:
        result = profiling.run(profiling.profile_graph(repeats, enhance, status.update))
    for table in profiling.profile_tables(result):
        Console().print(table)
    ttff_ms = sorted(result.ttff_ms)[len(result.ttff_ms) // 2]
    Console().print(f"TTFF {ttff_ms:.0f} ms (median), all processes {result.tree_mb:.0f} MB")
    if json_path:
        _write_whole(json_path, json.dumps(result.to_dict(), indent=1).encode())


@app.command("fetch-weights", epilog="Example: `warmtalk fetch-weights --only production`")
def fetch_weights(
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(weight_names())}, or a file; or all.")] = None,
    mirror: Annotated[str | None, typer.Option(help="A server that speaks the Hugging Face Hub's API.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only compare what is there with its hashes.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
) -> None:
    """Download production weights into weights/, resumable and checked, or verify those that are there."""
    from deployments.common.paths import output_path
    from warmtalk.cli.fetch_weights import command

    with _errors():
        status = command.fetch_weights(output_path("weights"), only or [], mirror, verify, dry_run)
        raise typer.Exit(status)


@app.command(epilog="Example: `warmtalk quality out/demo.mp4 -o report.html`")
def quality(
    video: Annotated[Path, typer.Argument(help="A talking-head video.")],
    avatar_id: Annotated[str | None, typer.Option(help="Whose source it shows, where no sidecar says.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Another video, judged beside it.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page to write, .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as the last line.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="So much of the video is judged.")] = 60.0,
) -> None:
    """Measure how real a video looks, against its avatar's source; exit 1 if a gate is broken, 2 if it cannot be."""
    from warmtalk.cli.quality.command import Question, run

    with _errors(2), _steps("reading") as show:
        holds = run(Question(video, avatar_id, reference, seconds), output, as_json, show)
    raise typer.Exit(0 if holds else 1)


@app.command(epilog="Example: `warmtalk doctor --json`")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    config: ConfigOption = "demo",
) -> None:
    """Check Python, torch, GPU, Ray, ports, weights and disk; say how to mend what is wrong."""
    from warmtalk.cli import doctor as checks

    raise typer.Exit(checks.main(as_json, config=config))


# --- steps of the commands


@contextmanager
def _errors(status: int = 1) -> Iterator[None]:
    """An error is a sentence and a remedy on stderr and an exit status, never a stack trace."""
    try:
        yield
    except WarmTalkError as error:
        raise _told(error.code, error.message, error.remedy, status) from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        remedy = "Check --server, or leave it out to start one here."
        raise _told("unreachable", f"The server does not answer: {error}.", remedy) from None
    except OSError as error:
        message = f"{error.filename or 'A file'}: {error.strerror or error}."
        raise _told("file", message, "Check the path, its permissions, and the space on the disk.", status) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _told(code: str, message: str, remedy: str, status: int = 1) -> typer.Exit:
    """Print the error, whatever brackets stand in it; return the exit that ends the command."""
    console.print(f"[bold red]{escape(code)}[/] {escape(message)}", highlight=False)
    if remedy:
        console.print(f"[bold]→[/] {escape(remedy)}", highlight=False)
    return typer.Exit(status)


def _bar() -> Progress:
    return Progress(
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), console=console, transient=True,
    )  # fmt: skip


@contextmanager
def _steps(first: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar for work of several steps; it is told the step's name, how much of it is done, and how much there is."""
    with _bar() as bar:
        task = bar.add_task(first, total=None, note="")
        yield lambda step, done, total: bar.update(
            task, description=step, completed=done, total=total or None, note=f"{done} / {total or '?'}"
        )


@contextmanager
def _local(config: str, port: int | None, stop: threading.Event | None = None) -> Iterator[Any]:
    """The graph on a Ray of its own, with a progress bar while it starts; always stopped."""
    from warmtalk.cli.local_graph import LocalGraph

    graph = LocalGraph(config, port)
    begin_s = time.monotonic()
    with _bar() as bar:
        task = bar.add_task("starting the graph", total=7, note="Ray")

        def show(done: int, total: int, waiting: str) -> None:
            if stop is not None and stop.is_set():
                raise KeyboardInterrupt
            bar.update(task, completed=done, total=total, note=waiting)

        graph.start(show)
    try:
        console.print(f"graph ready after {time.monotonic() - begin_s:.1f} s")
        yield graph
    finally:
        with console.status("stopping the graph"):
            graph.stop()


@contextmanager
def _server(config: str, server: str | None, port: int | None) -> Iterator[str]:
    if server:
        yield server.rstrip("/")
        return
    with _local(config, port) as graph:
        graph.hand_key()
        yield graph.url


def _refuse_vain_say(text: str, audio: Path | None, output: Path) -> None:
    """Refuse before a graph is started what could not be said, or not be written. Raises InputError, OSError."""
    if bool(text.strip()) == bool(audio):
        raise InputError("There is nothing to say.", "Give a text, or a recording with --audio, and only one of them.")
    if audio is not None and not audio.is_file():
        raise InputError(f"Input audio not found: {audio}.", "Check the path.")
    if output.is_dir():
        raise InputError(f"{output} is a folder.", "Name a file with --output.")
    output.parent.mkdir(parents=True, exist_ok=True)


def _say(url: str, text: str, audio: Path | None, output: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Stream the utterance into `output`, written whole or not at all; return its summary."""
    from models.stitch.sidecar import replace_with_sidecar

    session_id = f"say-{os.getpid()}-{int(time.time())}"
    options = {"session_id": session_id, "stream": True, **{k: v for k, v in chosen.items() if v is not None}}
    if audio is not None:
        request: dict[str, Any] = {"url": f"{url}/speak/audio", "params": options, "content": audio.read_bytes()}
    else:
        request = {"url": f"{url}/speak", "json": {"text": text, **options}}
    partial = _partial(output)
    with _bar() as bar, httpx.Client(timeout=600, headers=authorization()) as client:
        task = bar.add_task("speaking", total=None, note="")
        try:
            with partial.open("wb") as file, client.stream("POST", **request) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise _server_error(answer)
                for part in answer.iter_bytes():
                    file.write(part)
                    bar.update(task, note=f"{file.tell() / 1e3:.0f} kB")
            facts = client.get(f"{url}/sessions/{session_id}").raise_for_status().json()
            sidecar = client.get(f"{url}/sessions/{session_id}/sidecar.jsonl")
            summary = facts["last"]
            if summary is None or facts["utterances"][-1]["end_s"] is None:
                raise StageError("The utterance broke off.", "Look at the server's log and try again.")
            replace_with_sidecar(partial, output, sidecar.content if sidecar.status_code == 200 else b"")
        finally:
            partial.unlink(missing_ok=True)
            with suppress(httpx.HTTPError):  # a server that lives on keeps no session that nobody asks for again
                client.delete(f"{url}/sessions/{session_id}")
    return dict(summary)


def _server_error(answer: httpx.Response) -> WarmTalkError:
    try:
        error = answer.json()["error"]
        found = StageError(error["message"], error["remedy"])
        found.code = error["code"]
        return found
    except (ValueError, KeyError, TypeError):
        return StageError(f"The server answered {answer.status_code}.", "Look at its log.")


def _prepare_here(
    config: str, video: Path, avatar_id: str, force: bool, options: dict[str, Any], settings: list[str]
) -> dict[str, Any]:
    """Prepare in this process, as the Avatars stage would: no Ray is needed."""
    from warmtalk.cli.prepare import prepare_here, settings_of

    with _steps("loading the VAE") as show:
        return prepare_here(config, video, avatar_id, force, options, settings_of(settings), show)


def _prepare_remote(url: str, video: Path, avatar_id: str, force: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Upload to a running server and follow its progress."""
    chosen = {"avatar_id": avatar_id, "force": force, **options}
    params = {key: value for key, value in chosen.items() if value is not None}
    with _bar() as bar, httpx.Client(timeout=None, headers=authorization()) as client, video.open("rb") as file:
        task = bar.add_task("uploading", total=None, note="")
        with client.stream("POST", f"{url.rstrip('/')}/avatars", params=params, content=file) as answer:
            if answer.status_code != 200:
                answer.read()
                raise _server_error(answer)
            for line in answer.iter_lines():
                event = json.loads(line)
                if "report" in event:
                    return dict(event["report"])
                if "error" in event:
                    raise StageError(event["error"]["message"], event["error"]["remedy"])
                bar.update(task, description=event["step"], completed=event["done"], total=event["total"] or None)
    raise StageError("The server closed the answer without a report.", "Look at its log.")


def _write_whole(path: Path, data: bytes) -> None:
    from models.stitch.disk import replace_file

    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, data, sync=False)


def _partial(path: Path) -> Path:
    """Where a file is written before it is whole; of this process alone."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


if __name__ == "__main__":
    app()

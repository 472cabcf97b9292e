"""The `warmtalk` command: options and help of every sub-command. The work is done in the modules that they import."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from models.errors import InputError
from models.weights.manifest import selection_names as weight_names
from warmtalk.cli.terminal import console, errors, print_warning, progress_bar, step_progress

app = typer.Typer(
    name="warmtalk",
    help="Text or speech in, a talking-head video stream out.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)

ConfigOption = Annotated[str, typer.Option(help="A Serve config file, or demo, gpu, node, cluster.")]
ServerOption = Annotated[str | None, typer.Option(help="URL of a running server; without it one is started.")]
PortOption = Annotated[int | None, typer.Option(min=1, max=65535, help="HTTP port; the config's by default.")]


@app.command(epilog='Example: `warmtalk say "Hello there." -o hello.mp4`')
def say(
    text: Annotated[str, typer.Argument(help="The text to speak; - reads it from standard input.")] = "",
    output: Annotated[Path, typer.Option("-o", "--output", help="The video to write, .mp4.")] = Path("out/say.mp4"),
    file: Annotated[Path | None, typer.Option(help="Speak the text in this file.")] = None,
    audio: Annotated[Path | None, typer.Option(help="Speak this recording: WAV, FLAC, MP3 or OGG.")] = None,
    avatar_id: Annotated[str | None, typer.Option(help="A prepared avatar.")] = None,
    enhance: Annotated[bool | None, typer.Option(help="Restore the face to 512 px.")] = None,
    voice: Annotated[str | None, typer.Option(help="A voice of the TTS engine; an unknown one lists them all.")] = None,
    speed: Annotated[float | None, typer.Option(min=0.5, max=2, help="Speed of the voice; 1 is normal.")] = None,
    config: ConfigOption = "demo",
    server: ServerOption = None,
    port: PortOption = None,
) -> None:
    """Speak a text or a recording and write the video."""
    with errors():
        from warmtalk.cli import say as saying
        from warmtalk.cli.serving import server as running_server
        from warmtalk.cli.tables import summary_table

        saying.check_options(audio, voice, speed)
        spoken = saying.read_text(text, file, audio)
        saying.check_output(output)
        saying.check_server(server, port)
        if server is None:
            saying.check_before_start(config, avatar_id, audio)
        options = {"avatar_id": avatar_id, "enhance": enhance, "voice": voice, "speed": speed}
        with running_server(config, server, port) as url:
            summary = saying.say(url, spoken, audio, output, options)
        Console().print(summary_table(summary))
        for warning in summary.get("warnings", []):
            print_warning(warning)
        size = f"{summary['duration_s']:.1f} s, {output.stat().st_size / 1e6:.1f} MB"
        Console().print(f"[bold green]{escape(str(output))}[/] ({size})")
        Console().print(saying.next_steps(server), markup=False, highlight=False)


@app.command(epilog="Example: `warmtalk serve --port 8080`")
def serve(config: ConfigOption = "demo", port: PortOption = None) -> None:
    """Serve in the foreground until Ctrl-C."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    with errors():
        from warmtalk.cli.serving import started_graph

        open_it = "Open {}, or pass --port to start another.".format
        with started_graph(config, port, stop, open_it) as graph:
            for line in graph.greeting():
                console.print(line, highlight=False, soft_wrap=True)  # the request is there to be copied
            stop.wait()
            console.print("Stopping …")


@app.command(epilog="Example: `warmtalk prepare me.mp4 --avatar-id me`")
def prepare(
    video: Annotated[Path, typer.Argument(help="A video or a picture with a face.")],
    avatar_id: Annotated[str, typer.Option(help="1 to 64 of a-z, 0-9, _ and -.")],
    force: Annotated[bool, typer.Option(help="Replace an existing avatar of that id.")] = False,
    fps: Annotated[int | None, typer.Option(help="24, 25 or 30; the config's by default.")] = None,
    bbox_shift: Annotated[int | None, typer.Option(help="Moves the crop's upper edge, px.")] = None,
    extra_margin: Annotated[int | None, typer.Option(help="Margin below the chin, px.")] = None,
    geometry: Annotated[str | None, typer.Option(help="similarity, box or musetalk.")] = None,
    smoothing: Annotated[str | None, typer.Option(help="zero_phase, one_euro, kalman or none.")] = None,
    affine_tracking: Annotated[bool | None, typer.Option(help="Track the rigid face between landmarks.")] = None,
    scale_lock: Annotated[bool | None, typer.Option(help="One crop size for all frames.")] = None,
    subpixel: Annotated[bool | None, typer.Option(help="Sub-pixel crops.")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE: another key of Avatars' config.")] = None,
    config: ConfigOption = "demo",
    server: Annotated[str | None, typer.Option(help="URL of a running server that should prepare it.")] = None,
) -> None:
    """Prepare an avatar from a video or a picture, once, before it speaks."""
    options: dict[str, Any] = {"fps": fps, "bbox_shift": bbox_shift, "extra_margin": extra_margin}
    options |= {"geometry": geometry, "smoothing": smoothing, "affine_tracking_enabled": affine_tracking}
    options |= {"scale_lock_enabled": scale_lock, "subpixel_enabled": subpixel}
    with errors():
        from warmtalk.cli.prepare import prepare_here, prepare_on_server, settings_of
        from warmtalk.cli.tables import report_table

        if not video.is_file():
            raise InputError(f"Input video not found: {video}.", "Check the path.")
        if server and set_:
            raise InputError("--set and --server exclude each other.", "A server uses its own config: leave out --set.")
        with step_progress("uploading" if server else "loading the VAE") as show:
            if server:
                report = prepare_on_server(server, video, avatar_id, force, options, show)
            else:
                report = prepare_here(config, video, avatar_id, force, options, settings_of(set_ or []), show)
        Console().print(report_table(report))
        if sheet := report.get("contact_sheet"):
            Console().print(f"contact sheet: {sheet}", markup=False, highlight=False, soft_wrap=True)
        for warning in report.get("warnings", []):
            print_warning(warning)


@app.command(epilog="Example: `warmtalk enhance session.mp4 -o better.mp4`")
def enhance(
    video: Annotated[Path, typer.Argument(help="A finished video, or one to prepare an avatar from.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The video to write: .mp4, .mov or .mkv.")],
    strength: Annotated[float, typer.Option(help="0 leaves the frames as they are, 1 is the full model.")] = 1.0,
    every: Annotated[int, typer.Option(help="Restore every n-th frame; the frames between reuse its detail.")] = 1,
    engine: Annotated[str, typer.Option(help="small, gfpgan, spandrel, or module:Class.")] = "small",
    weights: Annotated[Path | None, typer.Option(help="The engine's weights, if not in the default place.")] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    address: Annotated[
        str | None, typer.Option(help="Use the graph on this Ray cluster (auto: the local one).")
    ] = None,
) -> None:
    """Restore the largest face in every frame of a video. After a crash, the same command resumes."""
    with errors():
        from rich.progress import TimeRemainingColumn

        from models.restore.video import EnhanceOptions
        from warmtalk.cli.enhance import ClusterBackend, LocalBackend, enhance_video

        with progress_bar() as bar:
            task = bar.add_task("loading", total=None, note="")
            options = EnhanceOptions(strength, every)
            backend = ClusterBackend.connect(address) if address else LocalBackend.load(engine, weights, device)
            bar.columns += (TimeRemainingColumn(),)

            def show(done: int, expected: int) -> None:
                bar.update(task, description="enhancing", completed=done, total=expected, note=f"{done} / {expected}")

            report = enhance_video(video, output, backend, options, progress=show)
        for warning in report.warnings:
            print_warning(warning)
        resumed = f", {report.resumed} of them from an earlier run" if report.resumed else ""
        done = f"{report.frames} frames{resumed}, {report.faces} faces restored in {report.seconds:.1f} s"
        Console().print(f"[bold green]{escape(str(output))}[/] ({done})")


@app.command(epilog="Example: `warmtalk profile --for-sessions 8 --html profile.html`")
def profile(
    config: ConfigOption = "demo",
    stage: Annotated[str | None, typer.Option(help="Only this stage, such as LipSync.")] = None,
    alone: Annotated[bool, typer.Option("--alone", help="Run that stage in this process, without Ray.")] = False,
    address: Annotated[
        str | None, typer.Option(help="Only read what a running graph records: http://HOST:PORT, or its Ray (auto).")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0, help="How long to read, with --address.")] = 10.0,
    batch: Annotated[str, typer.Option(help="Frames per call.")] = "1,4,16,64",
    sessions: Annotated[str, typer.Option(help="Sessions that speak at the same time; 0: none.")] = "1,4",
    repeats: Annotated[int, typer.Option(min=1, help="How often each sentence is spoken.")] = 2,
    enhance: Annotated[bool, typer.Option(help="Profile Enhance as well.")] = True,
    for_sessions: Annotated[
        int | None, typer.Option(min=1, help="Suggest settings for this number of sessions.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write the config with these settings to --output.")] = False,
    output: Annotated[Path, typer.Option("-o", "--output", help="The new config.")] = Path("profiled.yaml"),
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None,
    html: Annotated[Path | None, typer.Option(help="Also write a page with plots.")] = None,
    trace: Annotated[Path | None, typer.Option(help="Also write one utterance for ui.perfetto.dev.")] = None,
    baseline: Annotated[Path | None, typer.Option(help="Compare with this profile, written by --json.")] = None,
    port: PortOption = None,
) -> None:
    """Show what each stage costs and what limits it, and suggest settings for a number of sessions."""
    with errors():
        from warmtalk.cli.profile import command
        from warmtalk.cli.profile.graph import Options
        from warmtalk.cli.serving import started_graph

        if apply and not for_sessions:
            raise InputError("--apply needs a number of sessions.", "Say for how many: --for-sessions 8.")
        sizes, counts = command.numbers(batch, "--batch"), command.numbers(sessions, "--sessions", least=0)
        options = Options(repeats, enhance, sizes, [count for count in counts if count], stage)
        request = command.Request(config, options, alone, address, seconds, for_sessions)
        files = command.Files(json_path, html, trace, baseline, output if apply else None)
        files.check(request)
        with console.status("profiling") as status:
            graph = command.beside(status, started_graph(config, port, remedy=command.read_it))
            result, spoken = command.run(request, graph, status.update)
        command.show(result, spoken, request, files)


@app.command(epilog="Example: `warmtalk plan --sessions 500 --gpu L4 --enhance 0.3`")
def plan(
    sessions: Annotated[list[int] | None, typer.Option(min=1, help="Sessions at a time; several give a table.")] = None,
    gpu: Annotated[str, typer.Option(help="A GPU of the price table: H200, A100, L4, …")] = "H200",
    enhance: Annotated[float, typer.Option(min=0, max=1, help="Share of the sessions with enhancement.")] = 0.0,
    speaking: Annotated[
        float, typer.Option(min=0.05, max=1, help="Share of the time in which a session speaks.")
    ] = 0.4,
    viewers: Annotated[float, typer.Option(min=0, help="Viewers per session.")] = 1.0,
    decoder: Annotated[str, typer.Option(help="cropped, full or tiny.")] = "cropped",
    spare: Annotated[int, typer.Option(min=0, help="GPUs beyond what the sessions need, for failures.")] = 0,
    profile: Annotated[
        Path | None, typer.Option(help="Service times from `warmtalk profile --json` on that GPU.")
    ] = None,
    prices: Annotated[Path | None, typer.Option(help="A price table of your own; --write-prices makes one.")] = None,
    write_prices: Annotated[Path | None, typer.Option(help="Write the price table to this file, and end.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the plans as JSON.")] = False,
) -> None:
    """Say what a number of sessions needs: replicas, GPUs, memory, network, disk and cost, by a simulation."""
    with errors():
        from warmtalk.cli.plan import command

        if write_prices:
            command.write_prices(write_prices)
            return
        request = command.PlanRequest(tuple(sessions or command.SIZES), gpu, enhance, speaking, viewers, decoder, spare)
        with console.status("simulating") as status:
            plans = command.plans(request, profile, prices, status.update)
        command.show(plans, as_json)


@app.command(epilog="Example: `warmtalk load --server http://127.0.0.1:8000 --sessions 8 -o out/load.html`")
def load(
    scenario: Annotated[Path | None, typer.Argument(help="A scenario file; without one a small scenario.")] = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="The report to write, .html.")] = Path("out/load.html"),
    sessions: Annotated[int | None, typer.Option(min=1, help="Sessions at a time, instead of the file's.")] = None,
    duration: Annotated[float | None, typer.Option(min=1, help="Seconds of the load, instead of the file's.")] = None,
    enhance: Annotated[float | None, typer.Option(min=0, max=1, help="Share of enhanced sessions.")] = None,
    json_path: Annotated[Path | None, typer.Option("--json", help="Also write all figures to this file.")] = None,
    write_scenario: Annotated[Path | None, typer.Option(help="Write the small scenario to this file, and end.")] = None,
    config: ConfigOption = "demo",
    server: ServerOption = None,
    port: PortOption = None,
) -> None:
    """Put a load of sessions on a server: they come and go, speak, watch, interrupt. Write a report with plots."""
    with errors():
        from warmtalk.cli.load import command
        from warmtalk.cli.load.scenario import read_scenario
        from warmtalk.cli.serving import server as running_server

        if write_scenario:
            command.write_scenario(write_scenario)
            return
        for path in filter(None, (output, json_path)):
            if path.is_dir():  # said before the load, not after it
                raise InputError(f"{path} is a folder.", "Name a file.")
        changes = {"sessions": sessions, "duration_s": duration, "enhance": enhance}
        wanted = read_scenario(scenario).model_copy(update={k: v for k, v in changes.items() if v is not None})
        with running_server(config, server, port) as url, console.status("load") as status:
            result = command.run(url, wanted, status.update)
        command.show(result, output, json_path)


@app.command("fetch-weights", epilog="Example: `warmtalk fetch-weights --only production`")
def fetch_weights(
    only: Annotated[list[str] | None, typer.Option(help=f"{', '.join(weight_names())}, or a file; or all.")] = None,
    mirror: Annotated[str | None, typer.Option(help="A server with the Hugging Face Hub's API.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Only check the hashes of the files on disk.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be done.")] = False,
) -> None:
    """Download production weights into weights/, resumable and verified, or verify those on disk."""
    with errors():
        from deployments.common.paths import output_path
        from warmtalk.cli.fetch_weights import command

        status = command.fetch_weights(output_path("weights"), only or [], mirror, verify, dry_run)
        raise typer.Exit(status)


@app.command(epilog="Example: `warmtalk quality out/demo.mp4 -o report.html`")
def quality(
    video: Annotated[Path, typer.Argument(help="A talking-head video.")],
    avatar_id: Annotated[str | None, typer.Option(help="The avatar that it shows, if it has no sidecar.")] = None,
    reference: Annotated[Path | None, typer.Option(help="Another video to compare with.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The report to write, .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON on the last line.")] = False,
    seconds: Annotated[float, typer.Option(min=1, help="Length to analyse, from the start of the video, s.")] = 60.0,
) -> None:
    """Measure how real a video looks against its avatar's source. Exits with 1 if a gate fails, 2 on an error."""
    with errors(2):
        from warmtalk.cli.quality.command import QualityRequest, run

        with step_progress("reading") as show:
            passed = run(QualityRequest(video, avatar_id, reference, seconds), output, as_json, show)
        raise typer.Exit(0 if passed else 1)


@app.command(epilog="Example: `warmtalk doctor --json`")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print the checks as JSON.")] = False,
    config: ConfigOption = "demo",
) -> None:
    """Check Python, torch, GPU, Ray, ports, weights and disk, and say how to fix what is wrong."""
    with errors():
        from warmtalk.cli import doctor as checks

        raise typer.Exit(checks.main(as_json, config))


if __name__ == "__main__":
    app()

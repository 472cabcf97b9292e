"""`warmtalk say`: speaks a text or a recording on a server and writes the video."""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from models.errors import ConfigError, InputError, StageError
from models.stitch.sidecar import replace_with_sidecar
from warmtalk.cli.packages import in_checkout
from warmtalk.cli.terminal import console, progress_bar
from warmtalk.client import calls
from warmtalk.client.errors import NotFound, ServerError
from warmtalk.client.sync_client import Client

STDIN = "-"
STAGES = ("Stitch", "Avatars")  # whose config decides what `say` accepts
SUFFIX = ".mp4"


def read_text(argument: str, file: Path | None, audio: Path | None) -> str | None:
    """The text to speak: the argument, standard input for `-`, or the content of `file`; None with a recording.

    Raises InputError unless exactly one of the three is given and there is something to say.
    """
    given = [name for name, value in (("a text", argument), ("--file", file), ("--audio", audio)) if value]
    if len(given) > 1:
        raise InputError(f"{' and '.join(given).capitalize()} exclude each other.", "Give only one of them.")
    if audio is not None:
        if not audio.is_file():
            raise InputError(f"Input audio not found: {audio}.", "Check the path.")
        if not audio.stat().st_size:
            raise InputError(f"{audio} is empty: there is nothing to say.", "Give a WAV, FLAC, MP3 or OGG file.")
        return None
    if file is not None:
        if not file.is_file():
            raise InputError(f"Text file not found: {file}.", "Check the path.")
        text, source = _decoded(file.read_bytes(), str(file)), str(file)
    elif argument == STDIN:
        if sys.stdin.isatty():
            console.print("Type the text, then press Ctrl-D.")
        text, source = _decoded(sys.stdin.buffer.read(), "Standard input"), "Standard input"
    else:
        text, source = argument, ""
    if not text.strip():
        message = f"{source} is empty: there is nothing to say." if source else "There is nothing to say."
        remedy = "Give a text, `-` to read standard input, --file with a text file, or --audio with a recording."
        raise InputError(message, remedy)
    return text


def _decoded(data: bytes, source: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text.", "Use --audio for a recording, or save it as UTF-8.") from error


def check_options(audio: Path | None, voice: str | None, speed: float | None) -> None:
    """Raises InputError for options of the voice together with a recording, which has its own."""
    for name, value in (("--voice", voice), ("--speed", speed)):
        if audio is not None and value is not None:
            raise InputError(f"{name} and --audio exclude each other.", f"Leave {name} out: a recording has its voice.")


def check_output(output: Path) -> None:
    """Make the output's folder. Raises InputError for a path that cannot become an MP4 file, OSError."""
    if output.is_dir():
        raise InputError(f"{output} is a folder.", "Name a file with --output.")
    if output.suffix.lower() != SUFFIX:
        found = f"not {output.suffix}" if output.suffix else "and has no suffix"
        remedy = f"Use -o {output.with_suffix(SUFFIX)}; other programs can convert it afterwards."
        raise InputError(f"The video {output.name} is written as {SUFFIX}, {found}.", remedy)
    output.parent.mkdir(parents=True, exist_ok=True)


def check_server(server: str | None, port: int | None) -> None:
    """Raises InputError for a port together with the URL of a server, which has its own."""
    if server is not None and port is not None:
        raise InputError(
            "--server and --port exclude each other.", "Leave --port out: the URL of --server has its port."
        )


def check_before_start(config: str, avatar_id: str | None, audio: Path | None) -> None:
    """Check the avatar and the recording here, before the graph starts, which takes a while.

    Raises AvatarNotFound, IdError, AudioError, ConfigError, OSError.
    """
    from configs.serve_file import ConfigFileError, deployment_of, load_serve_config
    from deployments.common.paths import builtin_avatars, output_path
    from deployments.common.stage import parse_config
    from models.avatar.store import AvatarStore
    from models.speech.audio import decoded_blocks

    try:
        loaded = load_serve_config(config)
    except ConfigFileError as error:
        raise ConfigError(str(error), "Correct the file, or name another with --config.") from error
    stitch, avatars = (parse_config(name, deployment_of(loaded, name).get("user_config") or {}) for name in STAGES)
    made_at_start = avatars.avatar_id if avatars.video_path else None
    if avatar_id is not None and avatar_id != made_at_start:
        AvatarStore(output_path(stitch.avatars_dir), builtin_avatars()).folder(avatar_id)
    if audio is not None:
        with audio.open("rb") as file:
            for _ in decoded_blocks(file, stitch.max_audio_s):
                pass


def say(url: str, text: str | None, audio: Path | None, output: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Stream the utterance into `output`, written whole or not at all; return its summary.

    options: of Client.stream. Raises ServerError, StageError if the utterance is incomplete, OSError.
    """
    session_id = f"say-{os.getpid()}-{int(time.time())}"
    chosen = {key: value for key, value in options.items() if value is not None}
    partial = output.with_name(f".{output.name}.{os.getpid()}.part")
    with progress_bar() as bar, Client(url, tries=1) as client:
        task = bar.add_task("speaking", total=None, note="")
        try:
            with partial.open("wb") as file:
                for part in client.stream(text, audio, session_id, **chosen):
                    file.write(part)
                    bar.update(task, note=f"{file.tell() / 1e3:.0f} kB")
            session = client._do(calls.session_facts(session_id))
            if session["last"] is None or session["utterances"][-1]["end_s"] is None:
                raise StageError("The utterance is incomplete.", "Read the server's log, then try again.")
            replace_with_sidecar(partial, output, _sidecar(client, session_id))
        finally:
            partial.unlink(missing_ok=True)
            with suppress(ServerError):  # a server that runs on should keep no session that nobody uses again
                client.delete_session(session_id)
    return dict(session["last"])


def _sidecar(client: Client, session_id: str) -> bytes:
    """The session's sidecar; empty if the server keeps none."""
    try:
        return b"".join(client._bytes(calls.sidecar(session_id)))
    except NotFound:
        return b""


def next_steps(server: str | None) -> str:
    """What to try after the first video, with commands that work where this one was called."""
    if server:
        return f"Try next: open {server} in a browser and talk."
    if in_checkout(Path.cwd()):
        return 'Try next: make demo TEXT="What you want to hear.", or make serve and open its page.'
    return "Try next: warmtalk serve, then open its page in a browser."

"""Chat with a running server in the terminal and save the video of the conversation: `python examples/chat.py [URL]`"""

from __future__ import annotations

import sys

from warmtalk import ChatJob, Client, ServerError


def main(url: str) -> None:
    with Client(url) as client:
        session = client.open_session().session_id
        print(f"Watch at {url}/?session={session}   (an empty line ends the chat)")
        while message := input("you       > ").strip():
            try:
                job = client.wait(client.chat(message, session_id=session), progress=show)
                print(f"\rpresenter > {job.reply}   ({job.latency.get('first_frame_ms', 0):.0f} ms to the first frame)")
            except ServerError as error:
                print(f"\r{error}")
        if client.session(session).frames:
            print(f"Saved: {client.download(session, f'{session}.mp4')}")


def show(job: ChatJob) -> None:
    print(f"\rpresenter > … {job.status}, {job.progress:.0%} ", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8000")

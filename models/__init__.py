"""The pure half of WarmTalk: numpy, torch, OpenCV and PyAV, usable in a notebook without Ray.

In the order of the data: `tts` → `features` → `musetalk` → `restore` → `stitch`; `avatar` prepares what they need.
Imports nothing from configs, deployments, graph or cli.
"""

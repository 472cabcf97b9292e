"""The models and media code of WarmTalk: numpy, torch, OpenCV and PyAV. No Ray, no HTTP server: usable in a notebook.

types, errors            the data that passes between stages; one error tree with codes and HTTP statuses
tts/ → features → musetalk → restore/ → stitch/    the pipeline's engines, in the order of the data
speech/                  audio files, text, speech activity, visemes, mel spectrograms
avatar/                  prepares an avatar: landmarks, crops, masks, latents
media/, live/            H.264 and fMP4 without Ray; the timeline of a live session
llm/, recognition/       chat models and speech recognition
runtime/, weights/       engine registry, OpenVINO and CUDA graph caches; checkpoints and their manifest
quality/                 measurements of a finished video: lip sync, flicker, seams
embedded/                the small weights that come with the project

Imports nothing from configs, deployments, graph or warmtalk.
"""

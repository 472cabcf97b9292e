"""The models and media code of WarmTalk: numpy, torch, OpenCV and PyAV. No Ray, no HTTP server: usable in a notebook.

types, errors         data that passes between stages; one error tree with codes and HTTP statuses
tts/ → features → musetalk → restore/ → stitch/    engines and functions of the pipeline, in the order of the data
speech/               audio files, text, voice activity, visemes, mel spectrograms
avatar/               prepares an avatar: landmarks, crops, masks, latents
media/, live/         encoding and fMP4 boxes; the timeline of a live session
llm/, recognition/    chat engines; speech recognition
runtime/, weights/    engine registry, OpenVINO cache, CUDA graphs; checkpoints and their manifest
quality/, embedded/   measurements of a finished video; the small weights that come with the project
geometry, deflicker, mouth_gain, openai_http    shared by the packages above

Imports nothing from configs, deployments, graph or warmtalk.
"""

import os

# OpenCV reads this limit once, when it is imported, and checks it before it allocates a picture.
MAX_PICTURE_PIXELS = 8192 * 6144  # 50 megapixels: more than the largest photos of common phones (48)
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MAX_PICTURE_PIXELS))

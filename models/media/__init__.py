"""Encoding and decoding: H.264/AAC fragments, MP4 boxes, YUV frames and transcoding."""

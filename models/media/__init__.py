"""Encoding, MP4 boxes, YUV frames and transcoding."""

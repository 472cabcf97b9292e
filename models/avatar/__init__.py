"""Prepares avatars: a video in, a PreparedAvatar on disk out."""

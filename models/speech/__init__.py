"""Audio files, text, speech activity, visemes, mel spectrograms and changes to feature windows."""

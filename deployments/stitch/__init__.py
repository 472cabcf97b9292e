"""The Stitch stage: drives an utterance through the pipeline, pastes, encodes, and hands fragments on."""

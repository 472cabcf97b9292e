"""Whisper on a CUDA device in fp16 compared with fp32 on the CPU, and its time at the size of whisper-tiny."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch

from models.recognition import whisper as module
from models.recognition.decoding import decode
from models.recognition.whisper import WhisperRecognizer
from tests.support.whisper import TIMES, buzz, make_tokenizer, make_whisper, write_whisper

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_states_and_scores_match_the_cpu(tmp_path: Path) -> None:
    folder = write_whisper(tmp_path)
    cpu, cuda = WhisperRecognizer.load(folder, context_s=30.0), WhisperRecognizer.load(folder, "cuda")
    assert cuda.model.encoder.conv1.weight.dtype == torch.float16
    samples = torch.from_numpy(buzz(3.0))
    with torch.inference_mode():
        wanted, found = (engine._encode(samples, 0.0).float().cpu() for engine in (cpu, cuda))
        assert (found - wanted).abs().max() / wanted.abs().max() < 0.02
        prompt = cpu._prompt("en", "transcribe")
        one, other = (
            decode(engine.model.decoder, states, prompt, engine.rules, 1, engine.vocabulary.no_speech)
            for engine, states in ((cpu, wanted), (cuda, found.cuda().half()))
        )
    assert one.tokens == other.tokens and other.logprob == pytest.approx(one.logprob, abs=0.05)


def test_a_recording_is_transcribed_completely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MIN_LOGPROB", -99.0)  # random weights are never confident
    monkeypatch.setattr(module, "NO_SPEECH_SURE", 2.0)
    engine = WhisperRecognizer.load(write_whisper(tmp_path), "cuda")
    transcript = engine.transcribe(np.concatenate([buzz(2.0), np.zeros(16_000, np.float32), buzz(33.0)]))
    assert transcript.text and transcript.language in engine.vocabulary.languages
    assert all(0 <= s.start_s <= s.end_s <= transcript.duration_s for s in transcript.segments)


def test_a_sentence_at_the_real_size_takes_less_than_half_a_second() -> None:
    config = make_whisper(make_tokenizer().get_vocab_size() + TIMES).config
    config.update({"vocab_size": 51_865, "d_model": 384, "encoder_layers": 4, "decoder_layers": 4})
    config.update({"encoder_attention_heads": 6, "decoder_attention_heads": 6})
    config.update({"encoder_ffn_dim": 1536, "decoder_ffn_dim": 1536, "init_std": 0.02})
    from transformers.models.whisper.modeling_whisper import WhisperModel

    model = WhisperModel(config).eval().cuda().half()
    mel = torch.randn(1, 80, 3000, device="cuda", dtype=torch.float16)
    taken = []
    with torch.inference_mode():
        for _ in range(4):
            torch.cuda.synchronize()
            begin_s = time.perf_counter()
            states = model.encoder(mel).last_hidden_state
            rules = module.Rules(50_257, 50_364, (50_257,))
            found = decode(model.decoder, states, [50_258, 50_259, 50_359], rules, 30, 50_362)
            taken.append(time.perf_counter() - begin_s)
    print(f"30 s of sound, {len(found.tokens)} tokens: {1000 * min(taken):.0f} ms")
    assert min(taken) < 0.5

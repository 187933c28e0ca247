"""Train janus-mini from nothing: tokenizer of images, vision tower, language model, export.

    python scripts/janus_mini/train.py --work DIR [--out FOLDER]

Every stage is seeded, says how long it took, and goes on from its last checkpoint in DIR when run
again. Data and noise are functions of (stage, step), so a resumed run equals an undisturbed one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import build
import lm
import torch
import vision
import vq
from transformers.models.janus.modeling_janus import JanusVQVAE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoints and logs")
    parser.add_argument("--out", type=Path, help="write the model here, in the hub's layout")
    parser.add_argument("--vq-steps", type=int, default=2000)
    parser.add_argument("--vision-steps", type=int, default=1500)
    parser.add_argument("--lm-steps", type=int, default=1500)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    torch.manual_seed(0)
    codes = JanusVQVAE(build.vq_config())
    vq.train(codes, args.work, args.vq_steps)
    tok = build.tokenizer()
    torch.manual_seed(1)
    model = build.model(tok)
    model.model.vqmodel.load_state_dict(codes.state_dict())
    model.model.vqmodel.requires_grad_(False).eval()
    vision.train(model.model, args.work, args.vision_steps)
    lm.train(model, tok, args.work, args.lm_steps)
    if args.out:
        model.half().save_pretrained(args.out)
        build.processor(tok).save_pretrained(args.out)
        print("written to", args.out, flush=True)


if __name__ == "__main__":
    main()

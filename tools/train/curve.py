"""The loss curve of a training log as an SVG picture. Called by card.py; needs only the standard library."""

import json
from pathlib import Path

_WIDTH, _HEIGHT, _EDGE = 720, 320, 44
_SMOOTHING = 0.95


def write_curve(log: Path, picture: Path) -> None:
    """Draw nats per token over tokens seen: every step in grey, the running mean in blue."""
    records = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [record["loss"] for record in records]
    tokens = [record["num_tokens"] for record in records]
    smooth = [losses[0]]
    for loss in losses[1:]:
        smooth.append(_SMOOTHING * smooth[-1] + (1 - _SMOOTHING) * loss)
    low, high = int(min(losses)), int(max(losses)) + 1
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" font-family="sans-serif">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
    ]
    for value in range(low, high + 1):
        y = _EDGE + (high - value) / (high - low) * (_HEIGHT - 2 * _EDGE)
        lines.append(f'<path d="M{_EDGE} {y:.1f}H{_WIDTH - _EDGE}" stroke="#ddd"/>')
        lines.append(f'<text x="{_EDGE - 8}" y="{y + 4:.1f}" font-size="12" text-anchor="end">{value}</text>')
    for values, colour, stroke in ((losses, "#bbb", 0.6), (smooth, "#1f5fbf", 1.8)):
        points = " ".join(
            f"{_EDGE + seen / tokens[-1] * (_WIDTH - 2 * _EDGE):.1f},"
            f"{_EDGE + (high - value) / (high - low) * (_HEIGHT - 2 * _EDGE):.1f}"
            for seen, value in zip(tokens, values, strict=True)
        )
        lines.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>')
    caption = f"nats per token over {tokens[-1] / 1e6:.1f} million training tokens"
    lines.append(
        f'<text x="{_WIDTH // 2}" y="{_HEIGHT - 14}" font-size="13" text-anchor="middle">{caption}</text>'
    )
    picture.write_text("\n".join([*lines, "</svg>"]) + "\n")

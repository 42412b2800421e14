"""γ as a correction of the terminal noise level: bias of a frame's mean against γ, on data with an exact score.

`python benchmarks/gamma.py` writes docs/gamma.svg. The data of a frame are N(ρ·z^c, 0.5²) with z^c = 1, the noise of
the training has the mean λ = 0.03; 50 Euler steps, 200,000 samples. What z_999 holds of the data is missing in the
start, unless γ = ρ/σ_max.
"""

from __future__ import annotations

from pathlib import Path

import torch

from microcinema_core.diffusion import NoiseSchedule
from microcinema_core.samplers import initial, sample_euler

LAMBDA, STD, STEPS, SAMPLES = 0.03, 0.5, 50, 200_000
GAMMAS = [-0.02, 0.0, 0.02, 0.04, 0.06, 0.08]
RHOS = {0.0: "#888888", 0.3: "#2ca02c", 0.6: "#1f77b4", 1.0: "#d62728"}
PAGE = Path(__file__).resolve().parents[1] / "docs" / "gamma.svg"


def bias(rho: float, gamma: float) -> float:
    """The mean of the samples less the data's, from noise with the mean λ+γ."""
    noise = torch.randn(SAMPLES, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = NoiseSchedule().sigmas_for(STEPS).double()

    def denoise(x, sigma):
        return rho + STD**2 / (STD**2 + sigma**2) * (x - sigma * LAMBDA - rho)

    return sample_euler(denoise, initial(noise + LAMBDA + gamma, sigmas[0]), sigmas).mean().item() - rho


def plot(lines: dict[float, list[float]]) -> str:
    """An SVG of bias against γ, a line for each ρ, and a mark at its ρ/σ_max."""
    width, height, left, top = 640, 360, 70, 20
    low, high = -0.06, 0.06
    sigma_max = float(NoiseSchedule().sigmas[-1])

    def x(gamma):
        return left + (width - left - 20) * (gamma - GAMMAS[0]) / (GAMMAS[-1] - GAMMAS[0])

    def y(value):
        return top + (height - top - 50) * (high - value) / (high - low)

    parts = [f'<line x1="{left}" x2="{width - 20}" y1="{y(0):.1f}" y2="{y(0):.1f}" stroke="#444"/>']
    for gamma in GAMMAS:
        parts.append(f'<text x="{x(gamma):.1f}" y="{height - 28}" text-anchor="middle">{gamma:g}</text>')
    for value in (-0.05, 0.0, 0.05):
        parts.append(f'<text x="{left - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
    for (rho, values), colour in zip(lines.items(), RHOS.values(), strict=True):
        points = " ".join(f"{x(gamma):.1f},{y(value):.1f}" for gamma, value in zip(GAMMAS, values, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{x(rho / sigma_max):.1f}" cy="{y(0):.1f}" r="5" fill="none" stroke="{colour}"/>')
        end = f'x="{width - 24}" y="{y(values[-1]) - 6:.1f}"'
        parts.append(f'<text {end} text-anchor="end" fill="{colour}">ρ = {rho:g}</text>')
    parts.append(f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">γ (circles: ρ/σ_max)</text>')
    parts.append(f'<text x="16" y="{height / 2}" transform="rotate(-90 16 {height / 2})">bias of the mean</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif"'
    return (
        "\n".join([head + ' font-size="13">', '<rect width="100%" height="100%" fill="white"/>', *parts, "</svg>"])
        + "\n"
    )


if __name__ == "__main__":
    found = {rho: [bias(rho, gamma) for gamma in GAMMAS] for rho in RHOS}
    for rho, values in found.items():
        print(
            f"rho {rho:g}: " + ", ".join(f"{gamma:g} {value:+.4f}" for gamma, value in zip(GAMMAS, values, strict=True))
        )
    PAGE.write_text(plot(found))

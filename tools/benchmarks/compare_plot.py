"""The plot of a comparison: a panel per score, and one of the share of labels."""

from pathlib import Path
from typing import Any

from compare_plan import FLOORS, SUPERVISED
from compare_table import LABELS
from matplotlib.figure import Figure

PANELS = {'knn': 'kNN, k = 10', 'linear': 'linear', 'finetune': 'fine-tuned'}
SHARES = [1, 5, 10, 25, 100]


def plot(results: dict, path: Path) -> None:
    """Plot mean and interval of every row with a finished seed, floors as dotted lines."""
    rows = [row for row in results['rows'] if row['intervals']][::-1]  # the first on top
    panels = [key for key in PANELS if any(key in row['intervals'] for row in rows)]
    figure = Figure(figsize=(6 + 3 * len(panels), 2 + 0.45 * len(rows)), layout='constrained')
    axes = figure.subplots(1, len(panels) + 1, width_ratios=[1] * len(panels) + [1.3],
                           squeeze=False)[0]
    for axis, key in zip(axes, panels):
        score_panel(axis, rows, key)
    for axis in axes[1:len(panels)]:
        axis.set_yticklabels([])
    labels_panel(axes[-1], [row for row in rows[::-1] if row['name'] != SUPERVISED])
    if results['title']:
        figure.suptitle(results['title'], fontsize=11)
    figure.savefig(path, dpi=150)


def score_panel(axis: Any, rows: list[dict], key: str) -> None:
    for height, row in enumerate(rows):
        if key not in row['intervals']:
            continue
        mean, low, high = row['intervals'][key]
        floor = row['name'] in FLOORS
        color = 'tab:gray' if floor else 'tab:blue'
        if floor:
            axis.axvline(mean, color=color, linestyle=':', linewidth=1, zorder=0)
        # A percentile interval may lie beside the mean.
        axis.hlines(height, low, high, color=color)
        axis.plot(mean, height, 'o', color=color)
        axis.plot([scores[key] for scores in row['seeds'].values()],
                  [height - 0.22] * len(row['seeds']), '|', color=color, alpha=0.6)
        axis.annotate(f'{mean:.1f}', (mean, height), (0, 6), textcoords='offset points',
                      ha='center', fontsize=8,
                      bbox=dict(facecolor='white', edgecolor='none', pad=0.5))
    axis.set_title(PANELS[key], fontsize=10)
    axis.set_xlabel('accuracy, %')
    axis.grid(axis='x', alpha=0.3)
    axis.margins(x=0.12)
    axis.set_yticks(range(len(rows)), [row['name'] for row in rows])
    axis.set_ylim(-0.6, len(rows) - 0.3)


def labels_panel(axis: Any, rows: list[dict]) -> None:
    for row in rows:
        axis.plot(SHARES, [row['intervals'][key][0] for key in LABELS], marker='.',
                  linestyle=':' if row['name'] in FLOORS else '-', label=row['name'])
    axis.set_xscale('log')
    axis.set_xticks(SHARES, map(str, SHARES))
    axis.set_title('linear with few labels', fontsize=10)
    axis.set_xlabel('share of the labels, %')
    axis.set_ylabel('accuracy, %')
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)

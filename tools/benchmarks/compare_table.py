"""The numbers of a comparison: means, bootstrap intervals, paired differences, and Markdown."""

import argparse
import statistics
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from compare_plan import FLOORS, SEARCH, SUPERVISED, Run, validation
from runs import TrainingJob

from pera_mm.evaluation.block_split import block_split, index_blocks
from pera_mm.evaluation.bootstrap import bootstrap_interval
from pera_mm.evaluation.features import read_labelled_folder

FROZEN = {'knn_cls': 'kNN, [cls]', 'knn_patch': 'kNN, mean patch', 'knn': 'kNN, better',
          'linear_cls': 'linear, [cls]', 'linear_patch': 'linear, mean patch',
          'linear': 'linear, better', 'finetune': 'fine-tuned'}
LABELS = {'labels1': '1 %', 'labels5': '5 %', 'labels10': '10 %', 'labels25': '25 %',
          'linear': '100 %'}
COSTS = {'images': 'images', 'images_per_second': 'images/s', 'cpu_seconds': 'CPU s',
         'painted': 'painted, %'}
COMPARED = {'knn': 'kNN', 'linear': 'linear'}
COMPARED_WITH_FIRST = {key: FROZEN[key] for key in (
    'knn_cls', 'knn', 'linear_cls', 'linear', 'finetune')}

Outcomes = dict[int, dict[str, np.ndarray]]  # of each seed and score: right or not, [M]


def collect(args: argparse.Namespace, runs: list[Run], failed: list[TrainingJob]) -> dict:
    """Collect what results.json holds.

    Runs that are neither finished nor failed are still to come.
    """
    labels = read_labelled_folder(args.probe_data).labels
    tested = block_split(labels).test
    groups = index_blocks(labels)[tested].numpy(), labels[tested].numpy()
    rows: list[dict] = []
    outcomes: dict[str, Outcomes] = {}
    for row in dict.fromkeys(run.row for run in runs):
        mine = [run for run in runs if run.row == row]
        grid = {f'{run.lr:g}': validation(run) for run in mine
                if not run.counts and run.result() is not None}
        # Of a row that is still searching, or failed there, one search stands for its first seed.
        counted = [run for run in mine if run.counts] or mine[:1]
        done = {run.seed: run for run in counted if run.counts and run.result() is not None}
        outcomes[row.name] = {seed: run.outcomes() for seed, run in done.items()}
        open_runs = [run for run in counted if run.seed not in done]
        rows.append(dict(
            name=row.name, lr=counted[0].lr if counted[0].counts else None, grid=grid,
            seeds={str(seed): run.result() for seed, run in done.items()},
            intervals=intervals(outcomes[row.name], *groups),
            unfinished=[run.seed for run in open_runs if run.job not in failed]))
    for entry in rows:
        if entry['name'] not in FLOORS:
            entry['differences'] = {
                floor: intervals(differences(outcomes[entry['name']], outcomes.get(floor, {})),
                                 *groups) for floor in FLOORS}
    trained = [entry for entry in rows if entry['name'] not in FLOORS]
    for entry in trained[1:]:
        entry['lead_of_first'] = intervals(
            differences(outcomes[trained[0]['name']], outcomes[entry['name']],
                        COMPARED_WITH_FIRST), *groups)
    return dict(
        title=args.title, seeds=args.seeds, budget=budget(args), data=args.data,
        probe_data=args.probe_data, size=args.size, train_share=args.train_share,
        finetune_epochs=args.finetune_epochs,
        configs=[str(path) for path in args.configs], variants=args.variant,
        lr_grid=args.lr_grid, cfg_options=args.cfg_options, rows=rows,
        failed={job.name: str(job.log) for job in failed})


def budget(args: argparse.Namespace) -> str:
    if args.budget_cpu_seconds:
        return (f'{args.budget_cpu_seconds:g} CPU seconds of each training, at the cost of a step '
                'in a short run before')
    if args.budget_images:
        return f'{args.budget_images} images'
    return f'{args.epochs} epochs' if args.epochs else "each config's own epochs"


def intervals(by_seed: Outcomes, blocks: np.ndarray, classes: np.ndarray,
              ) -> dict[str, list[float]]:
    """Return mean and interval in percent of every score that all seeds have.

    Whole blocks are drawn anew, in each class as many as it has, and seeds.
    """
    if not by_seed:
        return {}
    keys = set.intersection(*(set(found) for found in by_seed.values()))
    return {key: list(bootstrap_interval(np.stack([found[key] for found in by_seed.values()]),
                                         blocks, classes)) for key in sorted(keys)}


def differences(mine: Outcomes, other: Outcomes, keys: Iterable[str] = tuple(COMPARED)) -> Outcomes:
    """Subtract another row's outcomes image by image, seed by seed where both have one."""
    return {seed: {key: mine[seed][key] - other[seed][key] for key in keys
                   if key in mine[seed] and key in other[seed]} for seed in mine if seed in other}


def costs(row: dict, key: str) -> list[float]:
    return [scores[key] for scores in row['seeds'].values() if key in scores]


def table(results: dict) -> str:
    """Write Markdown: scores and costs, few labels, differences to the floors, learning rates."""
    rows = results['rows']
    size = f'{results["size"]} px' if results['size'] else "each config's own crop size"
    half = f'{results["train_share"]:.0%} of half' if results.get('train_share') else 'half'
    drawn = 'over seeds and, in each class, blocks' if len(results['seeds']) > 1 else (
        'over blocks, in each class,')
    lines = [f'# {results["title"]}', ''] if results['title'] else []
    lines += [
        f'Budget: {results["budget"]}, on {", ".join(results["data"])} without the test images; '
        f'seeds {", ".join(map(str, results["seeds"]))}. Accuracy in percent on '
        f'{results["probe_data"]} at {size}, {half} of each class for training, in blocks of ten '
        f'neighbors; [95 % bootstrap interval {drawn} of test images]. "Better": of [cls] and the '
        'mean patch token, by validation blocks of the training half, whose labels supervised '
        'training has learned.', '']
    lines += grid_of(rows, FROZEN, lambda row, key: interval_text(row['intervals'].get(key)),
                     {title: lambda row, key=key: cost_text(costs(row, key))
                      for key, title in COSTS.items()} | {'learning rate': rate_text})
    lines += ['', 'Linear classifier (better token) with a share of the labels, the mean of five '
              'draws; at least one image per class:', '']
    lines += grid_of([row for row in rows if row['name'] != SUPERVISED], LABELS,
                     lambda row, key: interval_text(row['intervals'].get(key)))
    lines += ['', 'Paired difference to the floors, image by image, [95 % interval]:', '']
    pairs = {(floor, key): f'{title} − {floor}' for key, title in COMPARED.items()
             for floor in FLOORS}
    lines += grid_of([row for row in rows if 'differences' in row], pairs,
                     lambda row, pair: interval_text(row['differences'][pair[0]].get(pair[1]),
                                                     signed=True))
    others = [row for row in rows if 'lead_of_first' in row]
    if others:
        lines += ['', f'Paired difference of {rows[0]["name"]} to the other trainings in the seeds '
                  'that both have, image by image, [95 % interval]:', '']
        lines += grid_of(others, COMPARED_WITH_FIRST, lambda row, key: interval_text(
            row['lead_of_first'].get(key), signed=True))
    if results['lr_grid']:
        lines += ['', f'kNN on the validation blocks with each learning rate, first seed, '
                  f'{SEARCH:.0%} of the budget; all seeds have the best:', '']
        lines += grid_of([row for row in rows if row['grid']],
                         {f'{rate:g}': f'{rate:g}' for rate in results['lr_grid']}, grid_text)
    notes = [f'- {name}: failed, see {log}' for name, log in results['failed'].items()]
    unfinished = sum(len(row['unfinished']) for row in rows)
    if unfinished:
        notes.append(f'- {unfinished} runs are not finished')
    return '\n'.join([*lines, *(['', *notes] if notes else []), ''])


def grid_of(rows: list[dict], columns: dict, cell: Callable[[dict, Any], str],
            more: dict | None = None) -> list[str]:
    """Write a Markdown table; columns without a single value are left out."""
    cells = {title: [cell(row, key) for row in rows] for key, title in columns.items()}
    cells |= {title: [write(row) for row in rows] for title, write in (more or {}).items()}
    shown = {title: found for title, found in cells.items() if set(found) - {'–'}}
    lines = ['| | ' + ' | '.join(shown) + ' |', '|---' * (len(shown) + 1) + '|']
    return lines + ['| ' + ' | '.join([row['name'], *found]) + ' |'
                    for row, *found in zip(rows, *shown.values())]


def interval_text(interval: Iterable[float] | None, signed: bool = False) -> str:
    """Format as ``61.2 [58.0, 64.1]``."""
    if interval is None:
        return '–'
    mean, low, high = (f'{value:+.1f}' if signed else f'{value:.1f}' for value in interval)
    return f'{mean} [{low}, {high}]'


def cost_text(found: list[float]) -> str:
    return f'{statistics.mean(found):.0f}' if found else '–'


def rate_text(row: dict) -> str:
    return '–' if row['lr'] is None else f'{row["lr"]:g}'


def grid_text(row: dict, rate: str) -> str:
    if rate not in row['grid']:
        return '–'
    best = row['lr'] is not None and rate == f'{row["lr"]:g}'
    return f'**{row["grid"][rate]:.1f}**' if best else f'{row["grid"][rate]:.1f}'

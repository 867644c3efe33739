"""The device of the GPU tests, and the report that a run of them leaves (docs/gpu.md)."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / 'engine'))  # of training_runs

# Before the first use of CUDA: without it its matrix products are not repeatable.
os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')
DEVICE = os.environ.get('PERA_TEST_DEVICE', 'cuda')
REPORT = Path('work_dirs/gpu_report.md').absolute()
rows: list[str] = []


@pytest.fixture
def device() -> str:
    """``'cuda'``, or what PERA_TEST_DEVICE names: 'cpu' tries the tests themselves."""
    if DEVICE == 'cuda' and not torch.cuda.is_available():
        pytest.skip('PyTorch sees no GPU here: run `make test-gpu` on a machine that has one')
    return DEVICE


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note the outcome of a test and the numbers that it recorded."""
    if 'tests/gpu/' not in report.nodeid or report.when != 'call' and report.passed:
        return
    numbers = ', '.join(f'{name} {value:.3g}' if isinstance(value, float) else f'{name} {value}'
                        for name, value in report.user_properties)
    if report.skipped:
        numbers = report.longrepr[2].removeprefix('Skipped: ')
    elif report.failed:
        numbers = ': '.join(filter(None, [numbers, report.longreprtext.splitlines()[-1]]))
    cells = [report.nodeid.split('::')[1], report.outcome, f'{report.duration:.1f} s', numbers]
    rows.append('| ' + ' | '.join(cell.replace('|', '/') for cell in cells) + ' |')


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Write the report, if a device was tested, and print where it is."""
    if not rows or DEVICE == 'cuda' and not torch.cuda.is_available():
        return
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    REPORT.write_text('\n'.join([
        '# GPU report of pera_mm', '', *machine(), '',
        '| test | outcome | time | numbers |', '|---|---|---|---|', *rows, '']))
    terminalreporter.write_line(f'The report to send: {REPORT}')


def machine() -> list[str]:
    """Describe devices, driver and versions, a line each."""
    devices = ['CPU (these are no figures of a GPU)']
    driver = 'none'
    if DEVICE == 'cuda':
        devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        query = ['nvidia-smi', '--query-gpu=driver_version', '--format=csv,noheader']
        try:
            driver = subprocess.run(query, capture_output=True, text=True).stdout.split('\n')[0]
        except OSError:
            driver = 'unknown: there is no nvidia-smi'
    from mmengine import __version__ as mmengine_version

    from pera_mm.bridges import ops
    return [f'* device: {", ".join(devices)}', f'* driver: {driver}',
            f'* torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN '
            f'{torch.backends.cudnn.version()}', f'* mmengine {mmengine_version}, operators of '
            f'mmcv {ops.provider()}', f'* Python {platform.python_version()}']

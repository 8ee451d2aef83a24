"""The notebook: committed without outputs, and executed from its first cell to its last."""

import base64
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from demo import loop

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "first_loop.ipynb"
PLOTS = ["traffic-plot", "quiet-plot", "drifted-plot", "confidence-plot", "probe-plot", "loss-plot", "verdict-plot"]
PNG = b"\x89PNG\r\n\x1a\n"

executed_in_full = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(3600)]


def code_cells(notebook: Any) -> dict[str, Any]:
    return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def shown(cell: Any) -> str:
    """All text of a cell's outputs."""
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


def test_it_is_committed_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook).values())
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.fixture(scope="module")
def executed(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Its code cells after a run beside the demo's own workspace; a cell that raises fails here."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    kernel = AsyncKernelManager(  # the interpreter of the tests, whatever kernels are installed
        kernel_name="python3",
        kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
        connection_file=str(folder / "kernel.json"),
    )
    client = NotebookClient(
        notebook,
        km=kernel,
        timeout=1200,
        startup_timeout=600,
        iopub_timeout=600,  # by its 4 s a kernel on a busy machine has not sent its outputs, and they would be lost
        resources={"metadata": {"path": str(demo_folder)}},
    )
    environment = {name: value for name, value in os.environ.items() if name not in ("MPLBACKEND", "PYTHONPATH")}
    try:
        client.execute(env={**environment, "IPYTHONDIR": str(folder / "ipython")}, cleanup_kc=True)
    finally:
        nbformat.write(notebook, folder / "executed.ipynb")  # to look at when it fails
    return code_cells(notebook)


class TestExecuted:
    pytestmark = executed_in_full

    def test_no_cell_ends_in_an_error_and_every_cell_ran(self, executed: dict[str, Any]) -> None:
        outputs = [output for cell in executed.values() for output in cell.outputs]
        assert not [output for output in outputs if output.output_type == "error"]
        assert [cell.execution_count for cell in executed.values()] == list(range(1, len(executed) + 1))

    def test_exactly_the_plot_cells_show_a_picture(self, executed: dict[str, Any]) -> None:
        pictures = {
            name: base64.b64decode(output.data["image/png"])
            for name, cell in executed.items()
            for output in cell.outputs
            if "image/png" in output.get("data", {})
        }
        assert list(pictures) == PLOTS
        assert all(picture.startswith(PNG) and len(picture) > 5000 for picture in pictures.values())

    def test_the_quiet_window_is_held_and_the_drifted_one_promoted(self, executed: dict[str, Any]) -> None:
        assert shown(executed["quiet"]).startswith("held: ")
        assert shown(executed["drifted"]).startswith("trigger: ")
        assert shown(list(executed.values())[-1]) == "'promoted'"

    def test_the_champion_is_the_one_that_the_command_made(self, executed: dict[str, Any], demo_folder: Path) -> None:
        workspace = demo_folder / loop.WORKSPACE
        (kept,) = (workspace / loop.KEPT / "runs").iterdir()
        assert (workspace / "runs" / kept.name / "result.json").read_bytes() == (kept / "result.json").read_bytes()
        assert len(list((workspace / "runs").iterdir())) == 3  # first, quiet, drifted

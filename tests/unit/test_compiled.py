"""What is compiled ahead is all that a worker calls."""

from numba.core import event

from diffseglung.compiled import compile_all
from diffseglung.phantom import PhantomConfig, make_phantom
from diffseglung.prepare import prepare_case
from diffseglung.results import case_result, write_case
from diffseglung.segment import segment
from diffseglung.volume import Volume


def test_nothing_is_compiled_on_the_road_after_it_was_compiled_ahead(model, tmp_path):
    compile_all()
    with event.install_recorder("numba:compile") as seen:
        phantom = make_phantom(3, PhantomConfig(size_vox=(60, 80, 80), spacing_mm=(4.0, 4.0, 4.0)))
        volume = Volume.from_array(phantom.hu, phantom.spacing_mm)
        prepare_case("phantom", volume, model.config)
        result = case_result("phantom", volume, found := segment(volume, model))
        write_case(tmp_path / "phantom", volume, found, result)
    assert [e.data["dispatcher"].py_func.__name__ for _, e in seen.buffer] == []

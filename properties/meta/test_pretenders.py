"""Who only looks right is found out, and nobody is asked for what is not declared."""

from __future__ import annotations

import pytest

from properties.meta.project import ROOT, run_suite

FOUND_BY = {
    "in_eval_mode_only": "test_function.py::test_train_mode_is_kept_too",
    "in_full_precision_only": "test_reference.py::test_cycles_equal_algorithm_1",
    "narrow_layers_only": "test_reference.py::test_cycles_equal_algorithm_1",
    "thawing": "test_edges.py::test_parameters_stay_themselves",
    "zeroing_gradients": "test_edges.py::test_parameters_stay_themselves",
    "switching_modes": "test_edges.py::test_parameters_stay_themselves",
    "running_the_model": "test_edges.py::test_parameters_stay_themselves",
    "in_new_memory": "test_edges.py::test_memory_stays",
    "resetting_steps": "test_optimizer_state.py::test_state_commutes_with_cycles",
    "dropping_state_of_biases": "test_optimizer_state.py::test_state_commutes_with_cycles",
    "leaving": "test_minimum.py::test_nothing_moves_at_the_minimum",
    "never_cycling": "test_precondition.py::test_all_else_is_as_with_plain_cycles",
    "boasting": "test_energy.py::test_stopping_early_never_raises_the_energy",
    "miscounting": "test_energy.py::test_stopping_early_never_raises_the_energy",
    "endless": "test_energy.py::test_stopping_early_never_raises_the_energy",
    "setting_batchnorm": "test_edges.py::test_parameters_stay_themselves",
    "spreading_infinity": "test_edges.py::test_units_without_a_finite_norm_are_left_alone",
    "stopping_zeros": "test_optimizer_state.py::test_momentum_moves",
}


@pytest.mark.parametrize("pretender", FOUND_BY)
def test_a_pretender_is_found_out(pretender: str) -> None:
    chosen = f"--enorm-impl=properties.meta.pretenders:{pretender}"
    done = run_suite(ROOT, chosen, f"properties/{FOUND_BY[pretender]}", profile="ci-unshrunk")
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr


def test_weights_may_be_stored_in_every_cycle() -> None:
    chosen = "--enorm-impl=properties.meta.pretenders:often_storing"
    name = "properties/test_function.py::test_balance_keeps_the_function"
    done = run_suite(ROOT, chosen, name, profile="ci-unshrunk")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr


@pytest.mark.parametrize("strict", ["strict_plain", "strict_images", "strict_half"])
def test_nothing_is_asked_for_that_is_not_declared(strict: str) -> None:
    chosen = f"--enorm-impl=properties.meta.pretenders:{strict}"
    done = run_suite(ROOT, chosen, "properties", profile="mutation")
    assert done.returncode == pytest.ExitCode.OK, done.stdout + done.stderr

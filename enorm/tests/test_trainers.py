"""The callbacks, in real fits of the real packages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import enorm

SAMPLES, BATCH = 24, 4
OptimizerOf = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]


class Samples(Dataset[Any]):
    """Drawn once; as pairs, or by name as Hugging Face wants them."""

    def __init__(self, named: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(SAMPLES, 6, generator=generator)
        self.y = torch.randint(3, (SAMPLES,), generator=generator)
        self.named = named

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        pair = self.x[index], self.y[index]
        return {"x": pair[0], "labels": pair[1]} if self.named else pair


def network() -> nn.Sequential:
    """Three layers, always the same."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3)
    )


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that most of them use."""
    return torch.optim.Adam(parameters, lr=0.01)


class Two(nn.Module):
    """Two networks in a row, of which each is rescaled on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = network(), network()

    def forward(self, x: Tensor) -> Tensor:
        """The second's output."""
        logits: Tensor = self.second(F.pad(torch.tanh(self.first(x)), (0, 3)))
        return logits


def by_hand(epochs: int, **options: Any) -> nn.Sequential:
    """What the trainers have to arrive at: Adam, with ENorm behind each step."""
    model = network()
    optimizer = adam(model.parameters())
    enorm.ENorm(model, optimizer, **options).attach()
    for _ in range(epochs):
        for x, y in DataLoader(Samples(named=False), BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return model


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    """The same operations in the same order."""
    for (name, mine), other in zip(found.named_parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-7, msg=name)


OPTIONS = {"c": 1.1, "every": 4}


def task(pl: Any, net: nn.Module, optimizer: OptimizerOf = adam) -> Any:
    """A Lightning module whose network is ``net``."""

    class Task(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Any:
            return self.net(x)

        def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
            return F.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self.parameters())

    return Task()


def quiet(pl: Any, callbacks: Any, epochs: int) -> Any:
    """Lightning's trainer, which writes nothing."""
    return pl.Trainer(
        max_epochs=epochs,
        callbacks=callbacks,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


# Lightning's own dealings with torch and with data loaders.
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lightning(tmp_path: Path) -> None:
    """Two epochs, and one with a second from its checkpoint: weights and calls as by hand."""
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from enorm.lightning import ENormCallback

    def fit(epochs: int, module: str, checkpoint: Path | None = None) -> tuple[Any, Any, Any]:
        net, callback = network(), ENormCallback(module, **OPTIONS)
        trainer = quiet(pl, callback, epochs)
        trainer.fit(task(pl, net), DataLoader(Samples(named=False), BATCH), ckpt_path=checkpoint)
        return net, callback, trainer

    expected = by_hand(2, **OPTIONS)
    net, callback, _ = fit(2, "")
    assert_same(net, expected)
    assert callback.state_dict()["calls"] == 2 * SAMPLES // BATCH
    _, _, trainer = fit(1, "net")
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    net, callback, _ = fit(2, "net", tmp_path / "one.ckpt")
    assert_same(net, expected)
    assert callback.state_dict()["calls"] == 2 * SAMPLES // BATCH


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lightning_with_biases_and_a_second_model() -> None:
    """Lightning steps with a closure; a callback that has fitted one model may fit another."""
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from enorm.lightning import ENormCallback

    options: dict[str, Any] = {"c": 1.3, "precondition_bias": True}
    callback = ENormCallback("net", **options)

    def sgd(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)

    def fit(net: nn.Module) -> None:
        quiet(pl, callback, 1).fit(task(pl, net, sgd), DataLoader(Samples(named=False), BATCH))

    expected = network()
    optimizer = sgd(expected.parameters())
    stepper = enorm.ENorm(expected, optimizer, **options)
    stepper.attach()
    for x, y in DataLoader(Samples(named=False), BATCH):
        optimizer.zero_grad()
        F.cross_entropy(expected(x), y).backward()
        optimizer.step()
    net = network()
    fit(net)
    assert_same(net, expected)
    log2_a = callback.state_dict()["log2_a"]
    torch.testing.assert_close(log2_a, stepper.state_dict()["log2_a"])
    # Again: its state goes on.
    fit(net)
    assert callback.state_dict()["calls"] == 2 * SAMPLES // BATCH
    # Another one of the same shape: ENorm starts anew.
    other = network()
    fit(other)
    assert_same(other, expected)
    assert callback.state_dict()["calls"] == SAMPLES // BATCH
    fit(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lightning_with_averages() -> None:
    """Lightning makes the average itself, so nobody could rescale it along."""
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from lightning.pytorch.callbacks import StochasticWeightAveraging

    from enorm.lightning import ENormCallback

    trainer = quiet(pl, ENormCallback("net"), 1)
    trainer.callbacks.append(StochasticWeightAveraging(swa_lrs=0.01))
    with pytest.raises(ValueError, match=r"StochasticWeightAveraging averages weights of differ"):
        trainer.fit(task(pl, network()), DataLoader(Samples(named=False), BATCH))


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lightning_with_two_optimizers() -> None:
    """Which step one after the other, as by hand; a third has nothing to do with it."""
    pl: Any = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from enorm.lightning import ENormCallback

    class Task(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net, self.other = network(), nn.Linear(2, 2)
            self.automatic_optimization = False

        def training_step(self, batch: tuple[Tensor, Tensor]) -> None:
            both = self.optimizers()[:2]
            for one in both:
                one.zero_grad()
            self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
            for one in both:
                one.step()

        def configure_optimizers(self) -> list[torch.optim.Optimizer]:
            parts = ([self.net[0]], [self.net[2], self.net[4]], [self.other])
            return [adam(nn.ModuleList(part).parameters()) for part in parts]

    fitted, callback = Task(), ENormCallback("net", **OPTIONS)
    quiet(pl, callback, 2).fit(fitted, DataLoader(Samples(named=False), BATCH))
    assert_same(fitted.net, by_hand(2, **OPTIONS))
    assert callback.state_dict()["calls"] == 2 * SAMPLES // BATCH
    foreign = task(pl, network(), lambda _: adam(network().parameters()))
    with pytest.raises(ValueError, match="has none of the parameters that are rescaled"):
        quiet(pl, ENormCallback("net"), 1).fit(foreign, DataLoader(Samples(named=False), BATCH))


@pytest.fixture
def hf() -> Any:
    """Hugging Face's package, whose trainer needs accelerate."""
    pytest.importorskip("accelerate", reason="accelerate is not installed")
    return pytest.importorskip("transformers", reason="transformers is not installed")


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_lightning_with_two_callbacks(tmp_path: Path) -> None:
    """Each has a module, and its state in the checkpoint."""
    pl = pytest.importorskip("lightning.pytorch", reason="lightning is not installed")
    from enorm.lightning import ENormCallback

    def fit(epochs: int, checkpoint: Path | None = None) -> tuple[Any, Any]:
        model, names = Two(), ("net.first", "net.second")
        callbacks = [ENormCallback(name, **OPTIONS) for name in names]
        trainer = quiet(pl, callbacks, epochs)
        trainer.fit(task(pl, model), DataLoader(Samples(named=False), BATCH), ckpt_path=checkpoint)
        calls = [callback.state_dict()["calls"] for callback in callbacks]
        assert calls == [epochs * SAMPLES // BATCH] * 2
        return model, trainer

    expected, _ = fit(2)
    _, trainer = fit(1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    found, _ = fit(2, tmp_path / "one.ckpt")
    assert_same(found, expected)


class Classifier(nn.Module):
    """A network as Hugging Face wants it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        """Logits, and a loss where there are labels."""
        logits = self.net(x)
        if labels is None:
            return {"logits": logits}
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trained(
    hf: Any,
    net: nn.Module,
    callbacks: list[Any],
    folder: Path,
    resume: str | None = None,
    rate: float = 0.01,
    told: str | None = None,
) -> None:
    """Two epochs of ``net`` by Hugging Face's trainer, as :func:`by_hand` does them."""
    arguments = hf.TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=2,
        per_device_train_batch_size=BATCH,
        lr_scheduler_type="constant",
        learning_rate=rate,
        resume_from_checkpoint=told,
        max_grad_norm=0.0,
        save_strategy="epoch",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
        optim="adamw_torch",
        adam_epsilon=1e-8,
    )

    class InOrder(hf.Trainer):  # type: ignore[misc]
        def _get_train_sampler(self, *_: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = InOrder(
        model=Classifier(net),
        args=arguments,
        train_dataset=Samples(named=True),
        callbacks=callbacks,
    )
    trainer.train(resume_from_checkpoint=resume)


def test_transformers(tmp_path: Path, hf: Any) -> None:
    """Two epochs, and one resumed from the first's checkpoint: weights and calls as by hand."""
    from enorm.transformers import ENormCallback

    def train(resume: str | None, folder: str, *options: Any) -> tuple[Any, Any]:
        net, callback = network(), ENormCallback("net", **OPTIONS)
        trained(hf, net, [callback], tmp_path / folder, resume, *options)
        return net, callback

    expected = by_hand(2, **OPTIONS)
    net, callback = train(None, "whole")
    assert_same(net, expected)
    assert callback.enorm.state_dict()["calls"] == 2 * SAMPLES // BATCH
    first = tmp_path / "whole" / f"checkpoint-{SAMPLES // BATCH}"
    assert (first / "enorm.net.pt").exists()
    net, callback = train(str(first), "whole")
    assert_same(net, expected)
    assert callback.enorm.state_dict()["calls"] == 2 * SAMPLES // BATCH
    with pytest.warns(UserWarning, match="ENorm starts anew"):
        train(str(first), "elsewhere")
    # A folder of the same name that another training left is none.
    train(None, "other", 0.02)
    with pytest.warns(UserWarning, match=r"belongs to, so that ENorm starts anew"):
        train(str(first), "other")
    train(None, "other", 0.02)
    net, callback = train(str(first), "other", 0.01, str(first))
    assert_same(net, expected)
    assert callback.enorm.state_dict()["calls"] == 2 * SAMPLES // BATCH


def test_transformers_resumed_after_one_step(tmp_path: Path, hf: Any) -> None:
    """The earliest step whose state has to be looked for."""
    from enorm.transformers import ENormCallback

    model = network()
    arguments = hf.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    control = hf.TrainerControl()
    given = {"model": model, "optimizer": adam(model.parameters())}
    callback = ENormCallback()
    callback.on_train_begin(arguments, hf.TrainerState(), control, **given)
    with pytest.warns(UserWarning, match="resumes at step 1 with weights that no"):
        callback.on_train_begin(arguments, hf.TrainerState(global_step=1), control, **given)


def test_transformers_with_two_callbacks(tmp_path: Path, hf: Any) -> None:
    """Each has a module, and a file in the checkpoint."""
    from enorm.transformers import ENormCallback

    nets = []
    for resume in (None, str(tmp_path / f"checkpoint-{SAMPLES // BATCH}")):
        nets.append(Two())
        callbacks = [ENormCallback(name, **OPTIONS) for name in ("net.first", "net.second")]
        trained(hf, nets[-1], callbacks, tmp_path, resume)
        calls = [callback.enorm.state_dict()["calls"] for callback in callbacks if callback.enorm]
        assert calls == [2 * SAMPLES // BATCH] * 2
    assert_same(*nets)


def test_transformers_in_a_search(tmp_path: Path, hf: Any) -> None:
    """Its checkpoints are elsewhere, and nobody resumes from them."""
    from enorm.transformers import ENormCallback

    model, callback = network(), ENormCallback()
    arguments = hf.TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    state, control = hf.TrainerState(is_hyper_param_search=True), hf.TrainerControl()
    given = {"model": model, "optimizer": adam(model.parameters())}
    callback.on_train_begin(arguments, state, control, **given)
    callback.on_save(arguments, state, control, **given)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_holds_in_mixed_precision(hf: Any) -> None:
    """What accelerate puts around forward chooses a precision, and which are whose units stays."""
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    model = network()
    plan = enorm.trace(model)
    optimizer = adam(model.parameters())
    ready = accelerate.Accelerator(cpu=True, mixed_precision="bf16").prepare(model)
    assert "forward" in vars(ready)
    enorm.ENorm(ready, optimizer, plan=plan).step()
    ready.forward = lambda x: x
    with pytest.raises(ValueError, match="plan was traced from another model"):
        enorm.ENorm(ready, optimizer, plan=plan)

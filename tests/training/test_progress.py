from __future__ import annotations

from types import SimpleNamespace

import torch
from ignite.engine import Engine, Events

from shared_components.errors import InputError
from shared_components.training import RunProgress, progress


def test_bar_covers_what_is_left_of_the_run(capfd):
    engine = Engine(lambda engine, batch: {"loss": 0.125})
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", 1))
    progress = RunProgress("training", ["loss", "absent"])
    progress.attach(engine)
    engine.run([0, 1], max_epochs=3)
    shown = capfd.readouterr().err
    assert progress.bar.total == 4 and progress.bar.n == 4
    assert "training: 100%" in shown and "epoch=3/3, loss=0.125" in shown


def test_a_large_volume_without_an_estimate_of_its_time_takes_no_run_down(monkeypatch, caplog):
    def inferer(image, network):
        raise InputError("mode translate needs the real images")

    monkeypatch.setattr(progress, "LARGE_IMAGE", 8)
    state = SimpleNamespace(batch={"image": torch.zeros(1, 1, 2, 2, 4)}, device="cpu")
    progress.announce_large_image(SimpleNamespace(state=state, network=torch.nn.Identity(), inferer=inferer))
    assert "about" not in caplog.text

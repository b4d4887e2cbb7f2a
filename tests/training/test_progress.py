from __future__ import annotations

from ignite.engine import Engine, Events

from shared_components.training import RunProgress


def test_bar_covers_what_is_left_of_the_run(capfd):
    engine = Engine(lambda engine, batch: {"loss": 0.125})
    engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", 1))
    progress = RunProgress("training", ["loss", "absent"])
    progress.attach(engine)
    engine.run([0, 1], max_epochs=3)
    shown = capfd.readouterr().err
    assert progress.bar.total == 4 and progress.bar.n == 4
    assert "training: 100%" in shown and "epoch=3/3, loss=0.125" in shown

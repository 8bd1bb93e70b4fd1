"""The files of ``deploy/compose``: what they name is there, and means what they say."""

import json
import re
from pathlib import Path

import pytest

from pipecat_duplex.server.metrics import Metrics
from pipecat_duplex.session import StepTiming

yaml = pytest.importorskip("yaml")

DEPLOY = Path(__file__).parents[2] / "deploy"
COMPOSE = DEPLOY / "compose"
BOARDS = sorted((COMPOSE / "grafana" / "dashboards").glob("*.json"))


def load(path: Path) -> dict:
    return yaml.safe_load(path.read_text())


def services() -> dict:
    return load(COMPOSE / "compose.yaml")["services"]


def test_every_file_that_is_mounted_or_built_is_there() -> None:
    for name, service in services().items():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE / source).exists(), (name, source)
        build = service.get("build")
        if build:
            context = (COMPOSE / build["context"]).resolve()
            assert (context / build["dockerfile"]).is_file()
            assert (context / "pyproject.toml").is_file()


@pytest.mark.parametrize("dockerfile", ["Dockerfile.cpu", "Dockerfile.cuda"])
def test_what_images_copy_is_let_in(dockerfile: str) -> None:
    text = (DEPLOY / "images" / dockerfile).read_text()
    let_in = (DEPLOY / "images" / f"{dockerfile}.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    assert copied
    for source in " ".join(copied).split():
        assert f"!{source}" in let_in
        assert (DEPLOY.parent / source).exists()


def test_commands_are_those_of_the_package() -> None:
    from typer.testing import CliRunner

    from pipecat_duplex.cli import app

    told = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "300"}).output
    commands = [services()["worker-1"]["command"]]
    for dockerfile in ("Dockerfile.cpu", "Dockerfile.cuda"):
        text = (DEPLOY / "images" / dockerfile).read_text()
        (command,) = re.findall(r"^CMD (\[.*\])$", text, re.MULTILINE)
        commands.append(json.loads(command))
    for subcommand, *options in commands:
        assert subcommand == "serve"
        for option in options:
            if option.startswith("--"):
                assert option in told


def test_the_balancer_gets_all_that_its_configuration_asks_for() -> None:
    asked = set(re.findall(r"\$\{(\w+)\}", (DEPLOY / "haproxy" / "haproxy.cfg").read_text()))
    environment = services()["haproxy"]["environment"]
    assert asked == set(environment)
    for name in ("WORKER_1", "WORKER_2"):
        assert environment[name].split(":")[0] in services()


def test_workers_stop_later_than_they_drain() -> None:
    worker = services()["worker-1"]
    drain_secs = int(worker["command"][worker["command"].index("--drain-secs") + 1])
    assert int(worker["stop_grace_period"].removesuffix("s")) > drain_secs


def test_prometheus_asks_services_that_are_there() -> None:
    jobs = load(COMPOSE / "prometheus.yaml")["scrape_configs"]
    targets = [t for job in jobs for each in job["static_configs"] for t in each["targets"]]
    assert {target.split(":")[0] for target in targets} <= set(services())
    (source,) = load(COMPOSE / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    for board in BOARDS:
        uids = re.findall(r'"uid": "(\w+)"', json.dumps(json.loads(board.read_text())["panels"]))
        assert set(uids) == {source["uid"]}


def known_metrics() -> set[str]:
    metrics = Metrics()
    metrics.ended["client"] = metrics.refused["full"] = 1
    metrics.add_step(StepTiming(0.01, 0.02))
    text = metrics.render(slots=8, used=1, lag_secs=0.0, draining=False)
    return {line.split("{")[0].split(" ")[0] for line in text.splitlines() if line[0] != "#"}


def expressions() -> list[str]:
    rules = load(COMPOSE / "alerts.yaml")["groups"]
    found = [rule["expr"] for group in rules for rule in group["rules"]]
    for board in BOARDS:
        panels = json.loads(board.read_text())["panels"]
        found += [target["expr"] for panel in panels for target in panel["targets"]]
    return found


def test_boards_and_alerts_name_metrics_that_the_server_has() -> None:
    used = {name for text in expressions() for name in re.findall(r"pipecat_duplex_\w+", text)}
    assert used and used <= known_metrics()
    # And everything that the server tells is on the board.
    for name in known_metrics():
        assert {name, re.sub(r"_(sum|count)$", "_bucket", name)} & used, f"{name} is not shown"

"""The ``pipecat-duplex`` command.

Nothing heavy is imported here: ``--help`` answers at once, with neither Pipecat nor torch.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from loguru import logger

from pipecat_duplex.commands.encoding import print_in_any_encoding
from pipecat_duplex.session import DuplexError
from pipecat_duplex.version import __version__

if TYPE_CHECKING:
    from loguru import Record

WARNING = 30
"""loguru's number for warnings."""

app = typer.Typer(
    name="pipecat-duplex",
    help="Full-duplex speech for Pipecat: an agent that listens while it speaks.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Verbose = Annotated[bool, typer.Option("--verbose", help="Show what goes on inside.")]
Checkpoint = Annotated[
    str, typer.Option(help="The model: 'embedded', a local folder, or owner/name on the hub.")
]
Url = Annotated[
    str | None, typer.Option(help="Talk with this server instead, e.g. ws://gpu:8998/api/chat.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="PIPECAT_DUPLEX_API_KEY", help="Shown to the server of --url.")
]


def main() -> None:
    """Run the command line."""
    print_in_any_encoding()
    app()


def _readable_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn errors that a person can act on into one line and exit code 2."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            return command(*args, **kwargs)
        except DuplexError as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(130) from None

    return run


def _start_logging(verbose: bool) -> None:
    """Show everything, or the package's own warnings only.

    Pipecat logs a banner while it is imported, and each error that this command turns into a line
    of its own: this comes first, and leaves both out.
    """
    logger.remove()
    if verbose:
        logger.add(_write_log, level="DEBUG", colorize=sys.stderr.isatty(), diagnose=False)
    else:
        logger.add(
            _write_log,
            level="INFO",
            format=_log_format,
            filter=_is_worth_showing,
            diagnose=False,  # No values of variables: among them are keys.
        )


def _is_worth_showing(record: "Record") -> bool:
    """The package's own warnings, and what a person should know before it happens."""
    own = (record["name"] or "").startswith("pipecat_duplex")
    return own and (record["level"].no >= WARNING or bool(record["extra"].get("notice")))


def _log_format(record: "Record") -> str:
    plain = "{message}\n" if record["level"].no < WARNING else "{level}: {message}\n"
    return plain + "{exception}"


def _write_log(line: str) -> None:
    # Looked up each time: a progress bar puts its own stream there.
    sys.stderr.write(line)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pipecat-duplex {__version__}")
        raise typer.Exit


@app.callback()
def pipecat_duplex(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Full-duplex speech for Pipecat: an agent that listens while it speaks."""


@app.command()
@_readable_errors
def converse(
    audio: Annotated[
        Path, typer.Argument(metavar="IN.wav", help="The user: wav, flac, mp3 ...; '-' is a pipe.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="Write the agent's voice, on the time line of IN.")
    ] = None,
    stereo: Annotated[
        bool, typer.Option("--stereo", help="Write both voices to OUT: user left, agent right.")
    ] = False,
    events: Annotated[
        Path | None, typer.Option(help="Write what happened, one JSON object a line.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the conversation (PNG).")] = None,
    checkpoint: Checkpoint = "embedded",
    url: Url = None,
    api_key: ApiKey = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Get the same conversation again.")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy", help="Always take the most likely token.")
    ] = False,
    realtime: Annotated[
        bool, typer.Option(help="Go by the wall clock instead of as fast as possible.")
    ] = False,
    tail: Annotated[
        float, typer.Option(min=0, max=600, help="Seconds of silence after IN, for the answer.")
    ] = 4.0,
    verbose: Verbose = False,
) -> None:
    """Let a recording talk with the model, and keep what it answers."""
    _start_logging(verbose)
    from pipecat_duplex.commands.converse.converse import ConverseOptions, run_converse

    run_converse(
        ConverseOptions(
            audio=audio,
            out=out,
            stereo=stereo,
            events=events,
            plot=plot,
            checkpoint=checkpoint,
            url=url,
            api_key=api_key,
            seed=seed,
            greedy=greedy,
            realtime=realtime,
            tail_secs=tail,
        )
    )


@app.command()
@_readable_errors
def talk(
    checkpoint: Checkpoint = "embedded",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
    slots: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 1,
    llm: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible server that gives the words; see docs/llm.md."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="The LLM's name there.")] = None,
    stt: Annotated[
        str, typer.Option(help="A Whisper model, by name or folder, for the LLM.")
    ] = "base",
    tts: Annotated[
        str | None,
        typer.Option(
            help="Who speaks the LLM's words: 'hibari' (the default), a voice of Piper's "
            "('joe', or an .onnx file), or 'own', the model itself with the words that it has."
        ),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Talk with the model in a browser."""
    _start_logging(verbose)
    from pipecat_duplex.commands.talk.talk import run_talk

    given = None
    if (llm is None) != (model is None):
        raise DuplexError("--llm and --model belong together: a server, and the model's name there")
    if llm is not None and model is not None:
        from pipecat_duplex.commands.talk.llm import HIBARI, TalkLlm

        given = TalkLlm(llm, model, stt, os.getenv("LLM_API_KEY"), tts or HIBARI)
    elif tts is not None:
        raise DuplexError("--tts speaks the words of an LLM: give --llm and --model, too")
    run_talk(checkpoint=checkpoint, host=host, port=port, slots=slots, llm=given)


@app.command()
@_readable_errors
def serve(
    checkpoint: Checkpoint = "embedded",
    slots: Annotated[int, typer.Option(min=1, help="Conversations at a time.")] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "localhost",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8998,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            help="Callers must show it; may be given again. Or one in PIPECAT_DUPLEX_API_KEY."
        ),
    ] = None,
    allow_origin: Annotated[
        list[str] | None,
        typer.Option(help="Web pages that may call, such as https://bot.example, or '*'."),
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    max_session_secs: Annotated[
        float | None, typer.Option(min=1, help="End a session after this much audio.")
    ] = None,
    drain_secs: Annotated[
        float, typer.Option(min=0, help="How long sessions may go on after SIGTERM.")
    ] = 30.0,
    log_format: Annotated[
        Literal["text", "json"], typer.Option(help="One line a session, in words or in JSON.")
    ] = "text",
    device: Annotated[str | None, typer.Option(help="'cpu' or 'cuda'.")] = None,
    quantize: Annotated[
        Literal["int8", "int4"] | None,
        typer.Option(
            help="Keep the weights in fewer bits, for a small GPU; int4 is experimental "
            "(docs/gpu.md)."
        ),
    ] = None,
    long_calls: Annotated[
        Literal["ring", "rebuild"],
        typer.Option(
            help="Past its context the model forgets step by step (ring), or reads persona and "
            "last steps anew in time (rebuild; docs/long-calls.md)."
        ),
    ] = "ring",
    suppress_echo: Annotated[
        bool,
        typer.Option(
            help="Keep the agent's own voice, which comes back from a loudspeaker or a line, from "
            "what the model hears."
        ),
    ] = True,
    hear_barge_ins: Annotated[
        bool,
        typer.Option(
            help="Let a small network of the checkpoint's own tell the agent to yield, or to "
            "answer somebody who waits, when the model does not."
        ),
    ] = True,
    tts: Annotated[
        str,
        typer.Option(
            help="Who speaks given words: 'hibari', which has any, or 'own', the model itself. "
            "'auto' is hibari for the embedded model only."
        ),
    ] = "auto",
    hears: Annotated[
        str | None,
        typer.Option(
            help="A recogniser beside the model, such as kyutai/stt-1b-en_fr: the user's words "
            "come without an STT (docs/llm.md)."
        ),
    ] = None,
    voices: Annotated[
        Path | None, typer.Option(help="Folder of recordings that callers may name as a voice.")
    ] = None,
    default_voice: Annotated[
        str | None,
        typer.Option(help="The voice where a caller names an unknown one; '' is the model's own."),
    ] = None,
    static: Annotated[
        Path | None, typer.Option(help="Folder of a web page to serve beside the API.")
    ] = None,
    max_calls_per_address: Annotated[
        int | None, typer.Option(min=1, help="Calls of one address at a time.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Serve the model to callers elsewhere, in Moshi's protocol."""
    _start_logging(verbose)
    from pipecat_duplex.commands.serve import (
        EmptyKey,
        ServeOptions,
        read_api_keys,
        refuse_all,
        run_serve,
    )

    def options(api_keys: tuple[str, ...]) -> ServeOptions:
        return ServeOptions(
            checkpoint=checkpoint,
            slots=slots,
            host=host,
            port=port,
            api_keys=api_keys,
            allowed_origins=tuple(allow_origin or ()),
            tls_cert=tls_cert,
            tls_key=tls_key,
            max_session_secs=max_session_secs,
            drain_secs=drain_secs,
            log_format=log_format,
            device=device,
            quantize=quantize,
            long_calls=long_calls,
            suppress_echo=suppress_echo,
            hear_barge_ins=hear_barge_ins,
            tts=tts,
            hears=hears,
            voices=voices,
            default_voice=default_voice,
            static=static,
            max_calls_per_address=max_calls_per_address,
        )

    try:
        api_keys = read_api_keys(api_key or (), os.environ)
    except EmptyKey as problem:
        refuse_all(options(()), problem)
    else:
        raise typer.Exit(run_serve(options(api_keys)))


@app.command()
@_readable_errors
def bench(
    callers: Annotated[
        str | None,
        typer.Option(help="Loads to try, such as 1,4,8. By default the largest is searched."),
    ] = None,
    secs: Annotated[float, typer.Option(min=2, max=3600, help="Length of each.")] = 30.0,
    checkpoint: Checkpoint = "embedded",
    runtime: Annotated[
        Literal["onnx", "torch"] | None, typer.Option(help="What runs it, if not the usual.")
    ] = None,
    url: Url = None,
    api_key: ApiKey = None,
    speech: Annotated[
        Path | None, typer.Option(help="What the callers say: wav or flac. A murmur by default.")
    ] = None,
    come_and_go: Annotated[
        bool, typer.Option("--come-and-go/--stay", help="Callers hang up and call again.")
    ] = True,
    playout_ms: Annotated[
        float, typer.Option(min=1, help="An answer is late so long after its step was spoken.")
    ] = 160.0,
    json: Annotated[Path | None, typer.Option(help="Write the figures (JSON).")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw delays and step times (PNG).")] = None,
    verbose: Verbose = False,
) -> None:
    """See how many conversations this machine, or a server, holds in real time."""
    _start_logging(verbose)
    from pipecat_duplex.commands.bench.bench import BenchOptions, run_bench

    try:
        loads = tuple(int(number) for number in (callers or "").split(",") if number)
    except ValueError:
        raise DuplexError(f"--callers takes numbers such as 1,4,8, not {callers!r}") from None
    run_bench(
        BenchOptions(
            callers=loads,
            secs=secs,
            checkpoint=checkpoint,
            runtime=runtime,
            url=url,
            api_key=api_key,
            speech=speech,
            come_and_go=come_and_go,
            playout_ms=playout_ms,
            json=json,
            plot=plot,
        )
    )


@app.command()
@_readable_errors
def doctor(
    checkpoint: Checkpoint = "embedded",
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    verbose: Verbose = False,
) -> None:
    """See whether this machine can hold a conversation, and what is wrong if not."""
    _start_logging(verbose)
    from pipecat_duplex.commands.doctor import run_doctor

    raise typer.Exit(run_doctor(checkpoint=checkpoint, as_json=as_json))


fleet = typer.Typer(help="Run workers on a Ray cluster: see docs/fleet.md.", no_args_is_help=True)
app.add_typer(fleet, name="fleet")

Cluster = Annotated[str, typer.Option(help="The cluster, as for `ray.init`.")]


@fleet.command()
@_readable_errors
def up(
    workers: Annotated[int, typer.Option(min=1, help="How many.")] = 2,
    checkpoint: Checkpoint = "embedded",
    slots: Annotated[int, typer.Option(min=1, help="Calls at a time, of each worker.")] = 8,
    cpus: Annotated[int, typer.Option(min=0, help="Processor cores of each worker.")] = 2,
    gpus: Annotated[int, typer.Option(min=0, max=1, help="GPUs of each worker.")] = 0,
    drain_secs: Annotated[
        float, typer.Option(min=0, help="How long calls may stay that cannot move.")
    ] = 30.0,
    api_key: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PIPECAT_DUPLEX_API_KEY", help="Callers must show it; may be given again."
        ),
    ] = None,
    registry_port: Annotated[
        int, typer.Option(min=0, max=65535, help="Where bots find the workers.")
    ] = 8990,
    cluster: Cluster = "auto",
    verbose: Verbose = False,
) -> None:
    """Start a fleet; one that runs is replaced worker by worker, and its calls move."""
    _start_logging(verbose)
    from pipecat_duplex.commands.fleet import WorkerOptions, run_up

    options = WorkerOptions(
        checkpoint=checkpoint,
        slots=slots,
        cpus=cpus,
        gpus=gpus,
        drain_secs=drain_secs,
        api_keys=tuple(api_key or ()),
    )
    run_up(cluster, options, workers=workers, registry_port=registry_port)


@fleet.command()
@_readable_errors
def status(cluster: Cluster = "auto", verbose: Verbose = False) -> None:
    """See the workers and their calls."""
    _start_logging(verbose)
    from pipecat_duplex.commands.fleet import run_status

    run_status(cluster)


@fleet.command()
@_readable_errors
def scale(
    workers: Annotated[int, typer.Argument(min=0, help="How many workers there shall be.")],
    cluster: Cluster = "auto",
    verbose: Verbose = False,
) -> None:
    """Have more workers, or fewer: calls move first."""
    _start_logging(verbose)
    from pipecat_duplex.commands.fleet import run_scale

    run_scale(cluster, workers)


@fleet.command()
@_readable_errors
def drain(
    node: Annotated[str, typer.Argument(help="The machine: its address, name or id.")],
    cluster: Cluster = "auto",
    verbose: Verbose = False,
) -> None:
    """Take a machine's workers away; their calls move to others."""
    _start_logging(verbose)
    from pipecat_duplex.commands.fleet import run_drain

    run_drain(cluster, node)


@fleet.command()
@_readable_errors
def down(cluster: Cluster = "auto", verbose: Verbose = False) -> None:
    """End the fleet."""
    _start_logging(verbose)
    from pipecat_duplex.commands.fleet import run_down

    run_down(cluster)


if __name__ == "__main__":
    main()

"""The commands. Everything heavy is imported inside them: `gainstage --help` does not load torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Optional

import typer

from gainstage.cli.screen import FINDINGS, HEALTHY, clear_errors, show, write

app = typer.Typer(
    help="Measures every stage of a PyTorch network, says why it will not learn, repairs it and proves the repair.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Target = Annotated[
    str,
    typer.Argument(
        help="path/to/file.py:build or package.module:build, a callable that returns a Program or (model, loss, data)"
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Level = Annotated[str, typer.Option(help="static, preflight or trial.")]
Codes = Annotated[Optional[str], typer.Option(help="Codes, prefixes or names of rules, separated by commas.")]  # noqa: UP045
Seed = Annotated[int, typer.Option(help="Seed of the samples, of new weights and of the data's order.")]


@app.command()
def check(
    target: Target,
    level: Level = "preflight",
    select: Codes = None,
    ignore: Codes = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure a network on its data and list what is wrong. Exit code 0: healthy, 1: findings, 2: bad input."""
    with clear_errors():
        from gainstage.checkup import check_program
        from gainstage.cli.target import load

        loaded = load(target)
        checkup = check_program(
            loaded.program,
            level=level,
            select=_codes(select),
            ignore=[*(_codes(ignore) or ()), *loaded.ignored],
            seed=seed,
        )
        write(checkup.to_json()) if as_json else show(checkup)
    raise typer.Exit(HEALTHY if checkup.healthy else FINDINGS)


@app.command()
def fix(
    target: Target,
    unsafe: Annotated[
        bool, typer.Option("--unsafe", help="Also try remedies that change the function family.")
    ] = False,
    diff: Annotated[bool, typer.Option("--diff", help="Print what would change, as a diff.")] = False,
    save: Annotated[Path | None, typer.Option(help="Write the repaired weights to this safetensors file.")] = None,
    level: Level = "preflight",
    select: Codes = None,
    ignore: Codes = None,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Try remedies one by one and keep those that cure. Exit code 0: healthy now, 1: findings left, 2: bad input."""
    with clear_errors():
        from gainstage.cli.target import load
        from gainstage.repair import fix as repair

        loaded = load(target)
        result = repair(
            loaded.program, level=level, select=_codes(select), ignore=[*(_codes(ignore) or ()), *loaded.ignored],
            seed=seed, unsafe=unsafe,
        )  # fmt: skip
        if as_json:
            write(result.to_json())
        else:
            show(result)
            if diff:
                write(result.diff())
        if save is not None:
            from gainstage.training import save_weights

            save_weights(result.model, save)
    raise typer.Exit(HEALTHY if result.after.healthy else FINDINGS)


@app.command()
def train(
    target: Target,
    epochs: Annotated[Optional[int], typer.Option(help="Passes over the data.")] = None,  # noqa: UP045
    batch_size: Annotated[Optional[int], typer.Option(help="Samples in a step.")] = None,  # noqa: UP045
    optimizer: Annotated[Optional[str], typer.Option(help="Name of an optimiser, such as adam.")] = None,  # noqa: UP045
    patience: Annotated[
        int | None, typer.Option(help="Stop after so many epochs without a lower validation loss.")
    ] = None,
    folder: Annotated[Optional[Path], typer.Option(help="Where readings, metrics and weights go.")] = None,  # noqa: UP045
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Train a program, watched."""
    with clear_errors():
        from gainstage.cli.target import load
        from gainstage.training import fit

        program = load(target).program
        run = fit(
            program,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            folder=folder,
            patience=patience,
        )
        write(run.to_json()) if as_json else show(run)
        if folder is not None and not as_json:
            write(f"written to {folder}: run.sqlite, run.json, weights.safetensors")


@app.command()
def rules(as_json: AsJson = False) -> None:
    """List all rules."""
    from gainstage.rules import choose, sections

    records = [
        {"code": r.code, "name": r.name, "depth": r.depth, "status": r.status, "summary": sections(r)[""]}
        for r in choose()
    ]
    if as_json:
        write(json.dumps(records, indent=2))
    else:
        from gainstage.report import rules_table

        show(rules_table(records))


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="Code or name of a rule, such as G101.")],
    as_json: AsJson = False,
) -> None:
    """Print the documentation of a rule."""
    with clear_errors():
        from gainstage.rules import find_rule, sections

        rule = find_rule(code)
        if as_json:
            write(
                json.dumps(
                    {"code": rule.code, "name": rule.name, "depth": rule.depth, "sections": sections(rule)},
                    indent=2,
                )
            )
        else:
            from gainstage.report import rule_page

            show(rule_page(rule))


plot = typer.Typer(help="Draw what theory knows.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(plot, name="plot")


@plot.command("activation")
def plot_activation(
    names: Annotated[list[str], typer.Argument(help="Names of activations, such as selu elu leaky_relu.")],
    out: Annotated[
        Path | None, typer.Option(help="Write an SVG or PNG file instead of drawing in the terminal.")
    ] = None,
    bounds: Annotated[tuple[float, float], typer.Option("--range", metavar="LOW HIGH", help="Inputs.")] = (-5.0, 5.0),
) -> None:
    """Draw activations: the curve, its derivative and where it saturates (slope below 5 % of its maximum)."""
    with clear_errors():
        from gainstage.nn.activations import pointwise
        from gainstage.report.charts import check_ending, save_chart
        from gainstage.report.plots import Plot, curve_of

        if out is not None:
            check_ending(out)
        curves = [curve_of(pointwise(name), *bounds) for name in names]
        if out is None:
            show(Plot(curves))
        else:
            save_chart(curves, out)
            write(f"written to {out}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("runs/demo"),
    epochs: Annotated[int, typer.Option(min=1, help="Passes over the data for each of the two trainings.")] = 5,
) -> None:
    """Check, fix and train a 20-layer network that will not learn, on scikit-learn's digits."""
    with clear_errors():
        from gainstage.cli.demo import run

        run(folder, epochs)


def _codes(text: str | None) -> list[str] | None:
    return None if text is None else [code.strip() for code in text.split(",") if code.strip()]


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="gainstage")

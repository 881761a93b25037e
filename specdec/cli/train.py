"""The command `train`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from ..drafters.methods import METHODS
from ..sources.embedded import DEFAULT_MODEL
from .options import DeviceOption, RevisionOption, TrustOption, between
from .terminal import help_alone
from .training.options import (
    AdapterKind,
    BatchOption,
    DataArgument,
    EpochsOption,
    ExitsOption,
    FeaturesOption,
    HeldOutOption,
    Labels,
    LabelsOption,
    ModelOption,
    OutOption,
    RateOption,
    RunOption,
    SeedOption,
    ThreadsOption,
    VocabularyOption,
)
from .training.start import check_arguments, learn, load_teacher, numbers, recipe_of

app = typer.Typer(
    help="Train a drafter on text written by its target; resumes after an interruption."
)
app.callback(invoke_without_command=True)(help_alone)


@app.command(help=f"Train {METHODS['redrafter'].help}.")
def redrafter(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    exit_dim: Annotated[
        int | None,
        typer.Option(
            help="Width of the residual blocks; default: twice the target's.",
            callback=between(1, 65536),
        ),
    ] = None,
    residual_blocks: Annotated[
        int, typer.Option(help="Number of residual blocks.", callback=between(0, 64))
    ] = 2,
    own_head: Annotated[
        bool, typer.Option("--own-head", help="Train a separate output head, as in the paper.")
    ] = False,
    length: Annotated[
        int, typer.Option(help="Number of positions ahead.", callback=between(1, 64))
    ] = 5,
    beam_width: Annotated[
        int | None,
        typer.Option(
            help="Beams while drafting; default: computed from the cost table.",
            callback=between(1, 64),
        ),
    ] = None,
    min_prob: Annotated[
        float | None,
        typer.Option(
            "--min-prob",
            "--least",
            help="Minimum cumulative probability of a node; default: computed from the cost table.",
            callback=between(0, 1),
        ),
    ] = None,
    min_step_prob: Annotated[
        float | None,
        typer.Option(
            "--min-step-prob",
            "--least-step",
            help="Minimum summed probability of the beams for another draft step; default: computed.",
            callback=between(0, 1),
        ),
    ] = None,
    labels: LabelsOption = Labels.distribution,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 512,
    learning_rate: RateOption = 2e-3,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a ReDrafter by local distillation."""
    layers = check_arguments(data, out, run, features, exit_layers)

    from ..drafters.redrafter import ReDrafterConfig

    recipe = recipe_of(epochs, batch, learning_rate, seed, draft_vocabulary, held_out, labels)
    target = load_teacher(model, revision, trust_remote_code, device, threads)
    width = target.config.hidden_size
    config = ReDrafterConfig(
        hidden_size=width,
        exit_dim=2 * width if exit_dim is None else exit_dim,
        residual_blocks=residual_blocks,
        tied_head=not own_head,
        trained_length=length,
        draft_length=length,
        beam_width=beam_width,
        min_prob=min_prob,
        min_step_prob=min_step_prob,
    )
    learn(target, config, data, run, out, recipe, features, layers)


@app.command(help=f"Train {METHODS['medusa'].help}.")
def medusa(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    heads: Annotated[
        int, typer.Option(help="Number of positions ahead.", callback=between(1, 16))
    ] = 4,
    blocks: Annotated[
        int, typer.Option(help="Residual blocks per head.", callback=between(0, 16))
    ] = 1,
    own_head: Annotated[
        bool, typer.Option("--own-head", help="Train an output matrix per head, as in the paper.")
    ] = False,
    head_weights: Annotated[
        str,
        typer.Option(help="Loss weight of each head, comma-separated; default: 0.8, 0.8^2, …"),
    ] = "",
    labels: LabelsOption = Labels.distribution,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 512,
    learning_rate: RateOption = 1e-3,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train Medusa heads by self-distillation."""
    layers = check_arguments(data, out, run, features, exit_layers)
    weights = numbers("head_weights", head_weights, float)

    from ..drafters.medusa import MedusaConfig

    recipe = recipe_of(epochs, batch, learning_rate, seed, draft_vocabulary, held_out, labels)
    shape = MedusaConfig(
        hidden_size=1,  # replaced by the target's once it is loaded
        heads=heads,
        blocks=blocks,
        output="own" if own_head else "projected",
        head_weights=tuple(weights) or None,
    )
    target = load_teacher(model, revision, trust_remote_code, device, threads)
    config = replace(shape, hidden_size=target.config.hidden_size)
    learn(target, config, data, run, out, recipe, features, layers)


@app.command(help=f"Train {METHODS['kangaroo'].help}.")
def kangaroo(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    exit_layer: Annotated[
        int,
        typer.Option(
            help="Exit layer: number of target layers used for drafting.", callback=between(1)
        ),
    ] = 2,
    kv_heads: Annotated[
        int | None,
        typer.Option(
            help="Key and value heads; default: as many as query heads.", callback=between(1)
        ),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option(
            help="Confidence below which drafting stops, 0.6 in the paper; default: computed.",
            callback=between(0),
        ),
    ] = None,
    gamma: Annotated[int, typer.Option(help="Maximum draft length.", callback=between(1))] = 6,
    adapter: Annotated[
        AdapterKind, typer.Option(help="Adapter behind the exit layer; attention in the paper.")
    ] = AdapterKind.attention,
    own_head: Annotated[
        bool,
        typer.Option("--own-head", help="Train a separate output head in place of the target's."),
    ] = False,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 8,
    learning_rate: RateOption = 1e-2,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train a Kangaroo adapter by self-distillation."""
    layers = check_arguments(data, out, run, features, exit_layers)

    from ..drafters.kangaroo import KangarooConfig

    recipe = recipe_of(epochs, batch, learning_rate, seed, draft_vocabulary, held_out)
    target = load_teacher(model, revision, trust_remote_code, device, threads)
    heads, width = target.config.num_attention_heads, target.config.hidden_size
    config = KangarooConfig(
        hidden_size=width,
        heads=heads,
        kv_heads=heads if kv_heads is None else kv_heads,
        head_dim=width // heads,
        exit_layer=exit_layer,
        eta=eta,
        gamma=gamma,
        adapter=adapter.value,
        own_head=own_head,
        mlp_size=8 * width // 3 if adapter == AdapterKind.layer else None,
    )
    learn(target, config, data, run, out, recipe, features, layers)


@app.command(help=f"Train {METHODS['eagle3'].help}.")
def eagle3(
    data: DataArgument,
    out: OutOption,
    run: RunOption,
    model: ModelOption = DEFAULT_MODEL,
    revision: RevisionOption = None,
    trust_remote_code: TrustOption = False,
    layers: Annotated[
        str,
        typer.Option(
            help="Target layers whose inputs are fused, comma-separated; default: low, middle, high."
        ),
    ] = "",
    intermediate_size: Annotated[
        int | None,
        typer.Option(help="Width of the MLP; default: the target's.", callback=between(1, 262144)),
    ] = None,
    passes: Annotated[
        int, typer.Option(help="Passes of the training-time test.", callback=between(1, 16))
    ] = 7,
    depth: Annotated[int, typer.Option(help="Maximum draft length.", callback=between(1, 16))] = 6,
    width: Annotated[
        int | None,
        typer.Option(
            help="Beams while drafting; default: computed from the cost table.",
            callback=between(1, 16),
        ),
    ] = None,
    draft_vocabulary: VocabularyOption = 8192,
    epochs: EpochsOption = 4,
    batch: BatchOption = 8,
    learning_rate: RateOption = 1e-3,
    held_out: HeldOutOption = 24,
    seed: SeedOption = 0,
    features: FeaturesOption = None,
    exit_layers: ExitsOption = "",
    threads: ThreadsOption = None,
    device: DeviceOption = "cpu",
) -> None:
    """Train an EAGLE-3 by training-time test."""
    further = check_arguments(data, out, run, features, exit_layers)
    named = tuple(int(layer) for layer in numbers("layers", layers, int))

    from ..drafters.eagle3 import Eagle3Config

    recipe = recipe_of(epochs, batch, learning_rate, seed, draft_vocabulary, held_out)
    target = load_teacher(model, revision, trust_remote_code, device, threads)
    config = Eagle3Config.beside(
        target.config,
        named or None,
        intermediate_size=intermediate_size,
        passes=passes,
        depth=depth,
        width=width,
    )
    learn(target, config, data, run, out, recipe, features, further)

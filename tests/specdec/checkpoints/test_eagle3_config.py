"""What `config.json` of an EAGLE-3 says: read as its writers mean it, or refused with the entry's name."""

import pytest

from eagle3_heads import configure
from specdec.checkpoints import Layout, export_drafter, import_drafter, load_folder, save_drafter

IDS = "eagle_aux_hidden_state_layer_ids"


@pytest.fixture
def speculators_head(target, head, tmp_path):
    """The same head in speculators' layout."""
    import_drafter(head, target).write(tmp_path / "own")
    export_drafter(tmp_path / "own", Layout.speculators).write(tmp_path / "theirs")
    return tmp_path / "theirs"


def layers_read(head, target):
    return load_folder(head, target).listener.layers


@pytest.mark.parametrize(
    ("entries", "layers"),
    [
        ({IDS: [1, 2, 3]}, (2, 3, 4)),  # 1, n/2 - 1, n - 4: the authors' choice, by its outputs
        ({"eagle_config": {IDS: [1, 2, 3]}}, (2, 3, 4)),
        ({"eagle_config": {IDS: [1, 2, 4]}}, (2, 3, 5)),  # outputs of other layers
        ({"eagle_config": {IDS: [1, 3, 5, 6]}}, (2, 4, 6)),
        ({"eagle_config": {IDS: [2, 3, 4]}}, (2, 3, 4)),  # nested, but inputs
        ({"eagle_config": {IDS: [2, 4, 6]}}, (2, 4, 6)),
        ({IDS: [1, 2, 4]}, (1, 2, 4)),  # inputs, as speculators writes them
        ({IDS: [2, 3, 4]}, (2, 3, 4)),
        ({IDS: []}, (2, 3, 4)),
        ({"eagle_config": {IDS: []}}, (2, 3, 4)),
        ({IDS: [], "eagle_config": {IDS: [1, 3, 4]}}, (2, 4, 5)),
    ],
)  # fmt: skip
def test_layer_ids_name_inputs_or_outputs(entries, layers, target, head):
    configure(head, **entries)
    assert layers_read(head, target) == layers


def test_layers_option_overrides_layer_ids(target, head, tmp_path):
    configure(head, eagle_config={IDS: [1, 2, 3]})
    import_drafter(head, target, layers=(1, 2, 5)).write(tmp_path / "own")
    assert layers_read(tmp_path / "own", target) == (1, 2, 5)


def test_layers_that_would_be_read_as_outputs_are_not_written(target, head, tmp_path):
    import_drafter(head, target, layers=(1, 2, 3)).write(tmp_path / "own")
    with pytest.raises(ValueError, match=r"layers: expected others than \[1, 2, 3\], which a reader takes for \[2, 3, 4\]"):  # fmt: skip
        export_drafter(tmp_path / "own", Layout.speculators)


MALFORMED = [
    ({"rope_scaling": "linear"}, "rope_scaling: expected an object, got 'linear'"),
    ({"rope_scaling": [1]}, r"rope_scaling: expected an object, got \[1\]"),
    ({"rope_parameters": 3}, "rope_parameters: expected an object, got 3"),
    ({"eagle_config": [1]}, r"eagle_config: expected an object, got \[1\]"),
    ({IDS: 5}, f"{IDS}: expected a list of layers, got 5"),
    ({IDS: ["a", 1, 2]}, rf"{IDS}: expected a list of layers, got \['a', 1, 2\]"),
    ({"eagle_config": {IDS: "123"}}, f"{IDS}: expected a list of layers, got '123'"),
    ({"draft_vocab_size": "many"}, "draft_vocab_size: expected a number from 1 on, got 'many'"),
    ({"draft_vocab_size": -3}, "draft_vocab_size: expected a number from 1 on, got -3"),
    ({"hidden_size": None}, "hidden_size: expected a number from 1 on, got None"),
    ({"intermediate_size": "x"}, "intermediate_size: expected a number from 1 on, got 'x'"),
    ({"num_attention_heads": 0}, "num_attention_heads: expected a number from 1 on, got 0"),
    ({"target_hidden_size": [4]}, r"target_hidden_size: expected a number from 1 on, got \[4\]"),
    ({"rms_norm_eps": "small"}, "rms_norm_eps: expected a number, got 'small'"),
    ({"rope_theta": {}}, "rope_theta: expected a number, got {}"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor: expected a number, got None"),
]  # fmt: skip
OTHER_MATHEMATICS = [
    ({"norm_output": True}, "norm_output: expected False, as in EAGLE-3, got True"),
    ({"fc_norm": True}, "fc_norm: expected False, as in EAGLE-3, got True"),
    ({"norm_before_fc": True}, "norm_before_fc: expected False, as in EAGLE-3, got True"),
    ({"eagle_config": {"norm_before_fc": True}}, "norm_before_fc: expected False, as in EAGLE-3, got True"),
    ({"eagle_config": {"use_aux_hidden_state": False}}, "use_aux_hidden_state: expected True, as in EAGLE-3, got False"),
    ({"hidden_act": "gelu"}, "hidden_act: expected 'silu', as in EAGLE-3, got 'gelu'"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor: expected 1, as in EAGLE-3, got 0.5"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor: expected 1, as in EAGLE-3, got 0.5"),
    ({"logit_scale": 0.1}, "logit_scale: expected 1, as in EAGLE-3, got 0.1"),
    ({"layer_types": ["sliding_attention"]}, "layer_types: expected full_attention, got 'sliding_attention'"),
    ({"rope_scaling": {"factor": 4.0}}, "rope_scaling: expected a rope_type beside the factor, got none"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "expected rotations of rope_type default or llama3 in a drafter, got 'yarn'"),
]  # fmt: skip


@pytest.mark.parametrize(("entries", "message"), [*MALFORMED, *OTHER_MATHEMATICS])
def test_error_names_the_entry(entries, message, target, head):
    configure(head, **entries)
    for load in (load_folder, import_drafter):
        with pytest.raises(ValueError, match=message) as raised:
            load(head, target)
        assert str(raised.value).count(str(head)) == 1


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"norm_output": True}, "norm_output: expected False"),
        ({"norm_before_fc": True}, "norm_before_fc: expected False"),
        ({"transformer_layer_config": "llama"}, "transformer_layer_config: expected an object, got 'llama'"),
        ({"norm_before_residual": "yes"}, "norm_before_residual: expected true or false, got 'yes'"),
    ],
)  # fmt: skip
def test_error_names_the_entry_in_speculators_layout(entries, message, target, speculators_head):
    configure(speculators_head, **entries)
    with pytest.raises(ValueError, match=message):
        load_folder(speculators_head, target)


def test_entries_that_say_the_usual_are_accepted(target, head):
    plain = load_folder(head, target).config
    configure(
        head,
        norm_output=False,
        fc_norm=False,
        eagle_config={"norm_before_fc": False, "use_aux_hidden_state": True},
        partial_rotary_factor=1.0,
        rope_scaling={"rope_type": "default"},
        logit_scale=1.0,
        layer_types=["full_attention"],
        num_hidden_layers=32,
    )
    assert load_folder(head, target).config == plain


def test_residual_of_the_normed_state_is_read_in_both_layouts(
    target, head, speculators_head, tmp_path
):
    for folder in (head, speculators_head):
        configure(folder, norm_before_residual=None)
        # False is the default of both `Eagle3SpeculatorConfig` and the readers of the authors' layout.
        assert not load_folder(folder, target).config.norm_residual
        configure(folder, norm_before_residual=True)
        drafter = load_folder(folder, target)
        assert drafter.config.norm_residual
    save_drafter(tmp_path / "saved", drafter)
    with pytest.raises(ValueError, match="norm_residual: expected False, as the authors' code"):
        export_drafter(tmp_path / "saved", Layout.eagle3)

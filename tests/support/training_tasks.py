"""Tasks of training tiny drafters."""

import torch

from specdec.drafters.eagle3 import Eagle3Config, new_module
from specdec.drafters.kangaroo import KangarooConfig
from specdec.drafters.medusa import MedusaConfig, MedusaModel
from specdec.drafters.redrafter import ReDrafterConfig, ReDrafterModel
from specdec.train.eagle3 import Eagle3Task
from specdec.train.kangaroo import KangarooTask
from specdec.train.medusa import MedusaTask, begin_as_target
from specdec.train.redrafter import ReDrafterTask, frequent_tokens
from tiny import VOCABULARY

EXIT = 2


def redrafter_task(target, features, **options):
    torch.manual_seed(0)
    config = ReDrafterConfig(
        hidden_size=48, exit_dim=96, tied_head=True, trained_length=3, draft_length=3
    )
    ids = frequent_tokens(features, 30, VOCABULARY)
    return ReDrafterTask(target, ReDrafterModel(config, VOCABULARY, ids), features, **options)


def medusa_task(target, features, output="projected", **options):
    torch.manual_seed(0)
    config = MedusaConfig(48, heads=3, output=output)
    ids = frequent_tokens(features, 30, VOCABULARY) if output == "projected" else None
    model = MedusaModel(config, VOCABULARY, ids)
    begin_as_target(target, model)
    return MedusaTask(target, model, features, **options)


def kangaroo_config(**shape):
    return KangarooConfig(hidden_size=48, heads=6, kv_heads=2, head_dim=8, exit_layer=EXIT, **shape)


def kangaroo_task(target, features, config=None, **options):
    torch.manual_seed(0)
    config = config or kangaroo_config()
    adapter = config.new_adapter(VOCABULARY)
    return KangarooTask(target, adapter, features, config=config, **options)


def eagle3_config():
    return Eagle3Config(
        hidden_size=48, intermediate_size=64, heads=4, kv_heads=2, head_dim=16, layers=(1, EXIT)
    )


def eagle3_task(target, features, **options):
    torch.manual_seed(0)
    ids = frequent_tokens(features, 30, VOCABULARY)
    model = new_module(eagle3_config(), VOCABULARY, ids)
    return Eagle3Task(target, model, features, draft_vocabulary=ids, **options)

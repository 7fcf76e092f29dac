"""Where the weights lie: whole on every process (DDP), or a shard of each on every process (FSDP2).

What reads or writes weights goes through here, so that the loop need not know which it is; so does what one process
decides for all. Everything that gathers or sends is collective: all processes must call it, in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from hftransfer.errors import TrainingError, UserError
from hftransfer.strategies.casting import own_values
from hftransfer.strategies.freezing import anatomy_of, transformers_model

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hftransfer.recipe import Recipe

Weights = dict[str, torch.Tensor]
T = TypeVar("T")


def kind_of(accelerator: Accelerator) -> str:
    """Accelerate's name for the way in which processes share the work, such as "NO", "MULTI_CPU", "FSDP"."""
    return str(accelerator.distributed_type.value)


def from_main_process(accelerator: Accelerator, action: Callable[[], T]) -> T:
    """What an action returns on the main process, or the error that it raises there, on all processes.

    Args:
        accelerator: The processes; all of them must call this.
        action: What one process decides for all. What it returns can be pickled.

    Raises:
        UserError: What was raised on the main process.
    """
    shared: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            shared = [(True, action())]
        except UserError as error:
            shared = [(False, (type(error), error.what, error.where, error.fix))]
    if accelerator.num_processes > 1:
        from accelerate.utils import broadcast_object_list

        broadcast_object_list(shared)
    done, found = shared[0]
    if done:
        return cast("T", found)
    kind, what, where, fix = found
    raise kind(what, where=where, fix=fix)


def shard_on_cpu(accelerator: Accelerator) -> None:
    """Let FSDP work on CPUs, too: Accelerate takes the launcher's settings there and then trains with DDP, silently."""
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    if accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(accelerator.mixed_precision)
    accelerator.state.fsdp_plugin = plugin
    # Both, as Accelerate does on GPUs: it copies the second one over the first whenever it looks.
    accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP


def check_support(accelerator: Accelerator, recipe: Recipe, num_stages: int) -> None:
    """Refuse what would train wrongly, or not at all, under the launcher's way of sharing the work.

    Raises:
        TrainingError: With what to change in the launcher's config or in the recipe.
    """
    kind = kind_of(accelerator)
    if kind in ("MEGATRON_LM", "XLA"):
        raise TrainingError(f"{kind} is not supported", where="the launcher's config", fix="use DDP or FSDP2")
    if kind == "FSDP":
        plugin: Any = accelerator.state.fsdp_plugin
        if plugin.fsdp_version != 2:
            raise TrainingError(
                "version 1 of FSDP cannot freeze part of a block", where="fsdp_version", fix="set it to 2"
            )
        if plugin.cpu_ram_efficient_loading:
            raise TrainingError(
                "every process loads the checkpoint itself",
                where="fsdp_cpu_ram_efficient_loading",
                fix="set it to false",
            )
    if kind in ("FSDP", "DEEPSPEED") and recipe.optim.retain != "none":
        raise TrainingError(
            "pretrained weights cannot be held while they are spread over processes",
            where="optim.retain",
            fix="use DDP (recipes/accelerate/one_node.yaml), or hftransfer soften after the training",
        )
    in_shards = kind == "FSDP" or (kind == "DEEPSPEED" and accelerator.state.deepspeed_plugin.zero_stage == 3)
    if in_shards and recipe.evaluation.calibration == "required":
        raise TrainingError(
            "nothing can be folded into a head whose weights are spread over processes",
            where="evaluation.calibration",
            fix="choose auto or none, or use DDP (recipes/accelerate/one_node.yaml)",
        )
    if kind == "DEEPSPEED":
        _check_deepspeed(accelerator, recipe, num_stages)


def _check_deepspeed(accelerator: Accelerator, recipe: Recipe, num_stages: int) -> None:
    """DeepSpeed keeps weights and moments in its engine, from where only the final weights are fetched."""
    refused = {
        "gradient_accumulation_steps": recipe.optim.gradient_accumulation_steps > 1,
        "checkpoint_every": recipe.checkpoint_every is not None,
        "resume": recipe.resume != "never",
        "keep": recipe.evaluation.keep in ("ema", "soup")
        or (recipe.evaluation.keep == "best" and accelerator.state.deepspeed_plugin.zero_stage == 3),
    }
    fixes = {"gradient_accumulation_steps": "1", "checkpoint_every": "nothing", "resume": "never", "keep": "last"}
    if num_stages > 1:
        raise TrainingError(
            f"a DeepSpeed engine cannot be rebuilt for the {num_stages} stages of this strategy",
            where="strategy",
            fix="use recipes/accelerate/fsdp2.yaml",
        )
    for name in (name for name, found in refused.items() if found):
        raise TrainingError(
            "not supported under DeepSpeed", where=name, fix=f"set it to {fixes[name]} or use accelerate/fsdp2.yaml"
        )


def prepare(accelerator: Accelerator, recipe: Recipe, model: nn.Module, optimizer: Any) -> tuple[nn.Module, Any]:
    """Wrap model and optimizer for a stage: DDP, FSDP2 or DeepSpeed, as the launcher said.

    Args:
        accelerator: Knows what the launcher said.
        recipe: Its batch size and clipping go to DeepSpeed's engine.
        model: The model in this stage; sharded already if an earlier stage was.
        optimizer: An optimizer over its parameters.
    """
    if kind_of(accelerator) == "DEEPSPEED":
        config = accelerator.state.deepspeed_plugin.deepspeed_config
        config["train_micro_batch_size_per_gpu"] = recipe.optim.per_device_train_batch_size
        config["gradient_clipping"] = recipe.optim.max_grad_norm
        engine, wrapped = accelerator.prepare(model, optimizer)
        return engine, wrapped
    if kind_of(accelerator) == "FSDP" and not is_sharded(model):
        inner, anatomy = transformers_model(model), anatomy_of(model)
        _refuse_shared_weights(model)
        blocks = sorted({type(inner.get_submodule(path)).__name__ for path in anatomy.blocks})
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = blocks
        # Together: the optimizer's parameters are replaced by their shards.
        sharded, wrapped = accelerator.prepare(model, optimizer)
        return sharded, wrapped
    if is_sharded(model):
        # It stays so in later stages, and the optimizer was built on its shards: Accelerate takes it as it is.
        model.__dict__["_is_accelerate_prepared"] = True
    return accelerator.prepare_model(model), accelerator.prepare_optimizer(optimizer)


def _refuse_shared_weights(model: nn.Module) -> None:
    """Refuse weights that several modules share, as T5's and BART's stacks share embeddings: each belongs to one shard.

    Accelerate itself takes care of an output layer that is tied to the input embeddings.
    """
    inner: Any = transformers_model(model)
    tied = {
        id(getattr(layer, "weight", None)) for layer in (inner.get_input_embeddings(), inner.get_output_embeddings())
    }
    names: dict[int, list[str]] = {}
    for name, parameter in inner.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for key, shared in names.items():
        if len(shared) > (2 if len(tied) == 1 and key in tied else 1):
            raise TrainingError(
                f"FSDP2 cannot shard what modules share ({', '.join(shared)})",
                where=type(inner).__name__,
                fix="use DDP (recipes/accelerate/one_node.yaml)",
            )


def is_sharded(model: nn.Module) -> bool:
    """Whether every process holds a shard of the weights alone: FSDP2, or DeepSpeed's stage 3, which marks them."""
    return isinstance(model, FSDPModule) or any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def release(model: nn.Module) -> None:
    """Let go of weights that a forward pass gathered and no backward pass let go of; a no-op on whole models."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def copy_weights(model: nn.Module, names: Collection[str]) -> Weights:
    """A copy of the named parameters on the CPU; of a sharded model, this process's shards."""
    parameters = dict(model.named_parameters())
    return {name: _local(own_values(parameters[name])).cpu().clone() for name in names}


@torch.no_grad()
def restore(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> None:
    """Put back what `copy_weights` copied, in place."""
    parameters = dict(model.named_parameters())
    for name, value in weights.items():
        _local(parameters[name]).copy_(value)


def local_weights(model: nn.Module, names: Collection[str]) -> Weights:
    """The named parameters as they are, sharing memory; of a sharded model, this process's shards."""
    parameters = dict(model.named_parameters())
    return {name: _local(own_values(parameters[name])) for name in names}


def live_weights(model: nn.Module, names: Collection[str]) -> Weights:
    """The named parameters as they are, sharing memory; of a sharded model, put together on the CPU (collective)."""
    parameters = dict(model.named_parameters())
    values = {name: own_values(parameters[name]) for name in names}
    return {name: whole_tensor(value) if isinstance(value, DTensor) else value for name, value in values.items()}


def whole_weights(model: nn.Module, weights: Mapping[str, torch.Tensor], *, keep: bool) -> Weights:
    """Put the shards of all processes together.

    Args:
        model: Where they come from.
        weights: What `copy_weights` copied.
        keep: Whether this process needs the result; the others take part and get nothing.
    """
    parameters, found = dict(model.named_parameters()), {}
    for name, value in weights.items():
        like = parameters[name]
        if isinstance(like, DTensor):
            shard = DTensor.from_local(
                value.to(like.device),
                like.device_mesh,
                like.placements,
                run_check=False,
                shape=like.shape,
                stride=like.stride(),
            )
            value = shard.full_tensor().cpu()
        if keep:
            found[name] = value.contiguous()
    return found


def own_shards(model: nn.Module, weights: Mapping[str, torch.Tensor]) -> Weights:
    """This process's shards of whole weights, as `copy_weights` would copy them."""
    parameters = dict(model.named_parameters())
    return {name: _local(shard_like(value, parameters[name])).cpu().clone() for name, value in weights.items()}


def shard_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """A whole tensor, sharded as another one is; every process has the whole and cuts its part."""
    if not isinstance(like, DTensor):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements, src_data_rank=None)


def whole_tensor(value: torch.Tensor) -> torch.Tensor:
    """A tensor on the CPU, its shards put together; collective where it is sharded."""
    whole = value.full_tensor() if isinstance(value, DTensor) else value
    return whole.detach().cpu().contiguous()


def engine_weights(accelerator: Accelerator, engine: nn.Module) -> Weights:
    """The weights that DeepSpeed's stage 3 holds in its engine, put together on the main process; {} elsewhere."""
    if kind_of(accelerator) != "DEEPSPEED" or accelerator.state.deepspeed_plugin.zero_stage != 3:
        return {}
    return dict(accelerator.get_state_dict(engine) or {})


def gather_model(model: nn.Module, *, keep: bool, known: Mapping[str, torch.Tensor]) -> None:
    """Turn a sharded model into a plain one on the CPU, which its process can run; whole models stay as they are.

    Args:
        model: Changed in place.
        keep: Whether this process gets the weights; on the others they are empty afterwards.
        known: Whole weights by name, as `engine_weights` found them.
    """
    if not is_sharded(model):
        return
    release(model)
    done: dict[int, nn.Parameter] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in done:
                whole = known.get(f"{path}.{name}" if path else name)
                whole = whole_tensor(parameter if whole is None else whole)
                done[id(parameter)] = nn.Parameter(whole if keep else torch.empty(0), requires_grad=False)
            module._parameters[name] = done[id(parameter)]
    for module in model.modules():
        if isinstance(module, FSDPModule):
            # Its hooks would wait for the other processes.
            state = module._get_fsdp_state()
            for handle in (state._pre_forward_hook_handle, state._post_forward_hook_handle):
                handle.remove()
            # Sharding made it an instance of a class of its own, under which it must not be saved.
            module.__class__ = _class_before_sharding(type(module))


def _class_before_sharding(sharded: type) -> Any:
    return next(base for base in sharded.__bases__ if base is not FSDPModule)


def _local(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter, sharing its memory."""
    tensor = parameter.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def same_passes(num_batches: int, rank: int, world_size: int) -> Sequence[tuple[int, bool]]:
    """Which batches a process runs, so that all run equally often: sharded weights are gathered in every pass.

    Returns:
        (batch, whether it counts) per pass; what does not count fills up the last round.
    """
    rounds = -(-num_batches // world_size)
    positions = [turn * world_size + rank for turn in range(rounds)]
    return [(position, True) if position < num_batches else (0, False) for position in positions]

"""HookedACT: the Action Chunking Transformer with a hook point on every activation."""

from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actlens.cache import ActivationCache
from actlens.checkpoints.checkpoint import Checkpoint
from actlens.config import ACTION_KEY, ACTConfig
from actlens.errors import CheckpointError, SceneError
from actlens.hooked_module import HookedRootModule, NamesFilter
from actlens.hooks import HookPoint
from actlens.model.action_queue import Clock, new_queue
from actlens.model.attention import Attention
from actlens.model.decoder import Decoder
from actlens.model.device import usable_device
from actlens.model.dry_run import dry_run
from actlens.model.embed import Embed, Inputs
from actlens.model.encoder import Encoder
from actlens.model.lerobot_names import from_lerobot
from actlens.model.observation import prepare, read_entries
from actlens.model.token_major import LayerNorm
from actlens.model.vae import VAEEncoder
from actlens.normalization import Normalizer
from actlens.scene import Observation, Scene
from actlens.sites import Site, parse_where, split_address
from actlens.tokens import TokenMap

Actions = Float[Tensor, "batch chunk joint"]


class HookedACT(HookedRootModule):
    """LeRobot's ACT, with TransformerLens-style hook points.

        cameras ─► ResNet ─► 1x1 ─┐
        arm state ──► linear ─────┼─► tokens ─► encoder ─► memory ─┐
        latent z ───► linear ─────┘                                │ keys, values
        zeros + query positions ─► decoder: self-attention ─► cross-attention ─► MLP ─► actions

    On a CPU in float32 its outputs equal LeRobot's bit for bit. At inference z = 0; the CVAE
    encoder (`vae`) runs only when an action chunk is given.

    Attributes:
        config: the architecture.
        tokens: names, indices and pixel rectangles of the encoder's tokens.
        normalizer: dataset units <-> the network's units.
        checkpoint: what the weights were read from, or None for a network made in memory.
    """

    def __init__(
        self,
        config: ACTConfig,
        normalizer: Normalizer | None = None,
        *,
        frozen_norm: bool = True,
    ):
        super().__init__()
        self.config = config
        self.tokens = TokenMap(config)
        self.checkpoint: Checkpoint | None = None
        self.normalizer = normalizer or Normalizer({})
        self.embed = Embed(config, frozen_norm=frozen_norm)
        if config.use_vae:
            self.vae = VAEEncoder(config)
        self.encoder = Encoder(config, config.n_encoder_layers)
        self.decoder = Decoder(config)
        self.ln_final = LayerNorm(config.d_model, "query")
        self.action_head = nn.Linear(config.d_model, config.action_dim)
        self.hook_actions_normalized = HookPoint("batch chunk joint")
        self.hook_actions = HookPoint("batch chunk joint")
        for part in (self.encoder, self.decoder):  # LeRobot's initialisation
            for parameter in part.parameters():
                if parameter.dim() > 1 and parameter is not self.decoder.query_pos.weight:
                    nn.init.xavier_uniform_(parameter)
        self.clock = Clock()
        self._queue = new_queue(config)
        self.setup()

    def setup(self) -> None:
        """Name the hook points, and show each of them the rollout's clock."""
        super().setup()
        for point in self.hook_points():
            point.clock = self.clock

    # ── from and to files ────────────────────────────────────────────────────────────────────

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> Self:
        """Load a policy, in eval mode.

        Args:
            source: a bundled name, a LeRobot `pretrained_model` folder (0.1 to 0.6; a run folder
                will do), an original ACT `policy_best.ckpt`, or a hub id.
            revision: of a hub id.
            dtype: of the weights in memory; files may hold 16 bits.
            options: what an original ACT checkpoint does not say (`cameras`, `n_heads`, …); see
                `actlens.checkpoints.load_checkpoint`.

        Raises:
            CheckpointError: if files are missing, damaged or contradictory.
            UnsafeFileError: if a file would run code.
            DeviceError: if there is no such device here; no file was read.
        """
        from actlens.checkpoints import load_checkpoint

        usable_device(device)
        return cls.from_checkpoint(
            load_checkpoint(source, revision=revision, **options), device=device, dtype=dtype
        )

    @classmethod
    def from_checkpoint(
        cls,
        checkpoint: Checkpoint,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> Self:
        """The network of a checkpoint that was already read, in eval mode.

        Raises:
            CheckpointError: if its weights do not fit its config.
            DeviceError: if there is no such device here.
        """
        usable_device(device)
        with torch.device("meta"):
            model = cls(checkpoint.config)
        model.to_empty(device="cpu").to(dtype)
        model.normalizer = Normalizer(checkpoint.normalization)
        model._restore_position_buffers()
        weights = {from_lerobot(name): tensor for name, tensor in checkpoint.weights.items()}
        missing, unexpected = model.load_state_dict(
            {name: tensor.to(dtype) for name, tensor in weights.items()}, strict=False
        )
        if missing or unexpected:
            raise CheckpointError(
                f"{checkpoint.source}: the weights do not fit the config; "
                f"missing {sorted(missing)[:3]}, unexpected {sorted(unexpected)[:3]}."
            )
        model.checkpoint = checkpoint
        model.setup()
        return model.to(device=device, dtype=dtype).eval()

    def _restore_position_buffers(self) -> None:
        """Recompute what `to_empty` left undefined and no checkpoint stores."""
        for name, value in Embed(self.config, frozen_norm=True).named_buffers():
            if name.endswith(".pos"):
                self.embed.get_buffer(name).copy_(value)

    def to_checkpoint(self) -> Checkpoint:
        """The present weights (edits included) as a checkpoint.

        A tensor keeps the dtype of the file it came from where that holds its values; an edit that
        16 bits would round away is kept in float32, LeRobot's own dtype.

        Raises:
            CheckpointError: if the model was not loaded from a checkpoint: it has no statistics.
        """
        if self.checkpoint is None:
            raise CheckpointError(
                "This model was made in memory and has no normalisation statistics: build a "
                "Checkpoint with them and use HookedACT.from_checkpoint first."
            )
        present = self.state_dict()
        weights = {
            name: _as_in_file(present[from_lerobot(name)].detach().cpu(), old.dtype)
            for name, old in self.checkpoint.weights.items()
        }
        return replace(self.checkpoint, weights=weights)

    def save_pretrained(self, directory: str | Path, **options: Any) -> Path:
        """Write a LeRobot folder with the present weights, which LeRobot itself loads and runs."""
        from actlens.checkpoints import save_checkpoint

        return save_checkpoint(self.to_checkpoint(), Path(directory), **options)

    # ── the forward pass ─────────────────────────────────────────────────────────────────────

    def forward(
        self,
        observation: Observation | Scene,
        *,
        latent: Float[Tensor, "batch latent"] | None = None,
        action: Float[Tensor, "batch chunk joint"] | None = None,
        action_is_pad: Bool[Tensor, "batch chunk"] | None = None,
    ) -> Actions:
        """The action chunk for each observation, in dataset units and float32 at least.

        Args:
            observation: LeRobot's keys, uint8 or float images, batched or single (a batch of one).
            latent: the condition z; zeros if neither it nor `action` is given.
            action: demonstrated chunks in dataset units: z becomes the posterior mean.
            action_is_pad: True where `action` only repeats the last action.

        Raises:
            SceneError: if the observation does not fit the config.
        """
        inputs = self.prepare(observation)
        if action is not None:
            if latent is not None:
                raise SceneError("Give either a latent or an action chunk, not both.")
            latent, _ = self.posterior(inputs, action, action_is_pad)
        return self.hook_actions(
            self.normalizer.unnormalize(ACTION_KEY, self.predict(inputs, latent))
        )

    def predict(
        self, inputs: Inputs, latent: Float[Tensor, "batch latent"] | None = None
    ) -> Actions:
        """Normalised action chunks from prepared inputs: all between the two normalisations.

        Raises:
            SceneError: if `latent` is not `batch latent`.
        """
        needed = (inputs.batch_size, self.config.latent_dim)
        if latent is None:
            latent = self.action_head.weight.new_zeros(needed)
        elif latent.shape != needed:
            raise SceneError(f"The latent has shape {tuple(latent.shape)}; it must be {needed}.")
        else:
            latent = latent.to(self.action_head.weight, copy=True)
        tokens, pos = self.embed(inputs, latent)
        return self.decode(self.encoder(tokens, pos), pos)

    def decode(
        self,
        memory: Float[Tensor, "batch token d_model"],
        pos: Float[Tensor, "token d_model"],
    ) -> Actions:
        """Normalised action chunks from the encoder's output."""
        queries = self.ln_final(self.decoder(memory, pos))
        actions = self.hook_actions_normalized(self.action_head(queries))
        self.forward_count += 1
        return actions

    def resume(
        self,
        resid: Float[Tensor, "batch token d_model"],
        pos: Float[Tensor, "token d_model"],
        *,
        layer: int,
    ) -> Actions:
        """Action chunks in dataset units from the stream entering encoder block `layer`.

        Raises:
            SceneError: if there is no such layer, or `resid` is not `batch token d_model`.
        """
        normalized = self.resume_normalized(resid, pos, layer=layer)
        return self.hook_actions(self.normalizer.unnormalize(ACTION_KEY, normalized))

    def resume_normalized(
        self,
        resid: Float[Tensor, "batch token d_model"],
        pos: Float[Tensor, "token d_model"],
        *,
        layer: int,
    ) -> Actions:
        """Normalised action chunks from the stream entering encoder block `layer`.

        With `layer` equal to the number of encoder layers, `resid` is what the decoder attends to
        (`encoder.hook_out`, which fires).
        Hooks on what follows fire as in a whole forward; nothing before is computed.

        Raises:
            SceneError: if there is no such layer, or `resid` is not `batch token d_model`.
        """
        needed = (self.config.n_tokens, self.config.d_model)
        if resid.shape[1:] != needed:
            raise SceneError(
                f"resid has shape {tuple(resid.shape)}; this policy needs (batch, {needed[0]}, "
                f"{needed[1]})."
            )
        if not 0 <= layer <= self.config.n_encoder_layers:
            raise SceneError(
                f"Runs resume at encoder layers 0..{self.config.n_encoder_layers}, not {layer}."
            )
        # Token-major memory, so that the resumed run has the very bits of a whole one.
        resid = resid.transpose(0, 1).contiguous().transpose(0, 1)
        if layer == self.config.n_encoder_layers:
            memory = self.encoder.hook_out(resid)
        else:
            memory = self.encoder(resid, pos, start=layer)
        return self.decode(memory, pos)

    def posterior(
        self,
        inputs: Inputs,
        action: Float[Tensor, "batch chunk joint"],
        action_is_pad: Bool[Tensor, "batch chunk"] | None = None,
    ) -> tuple[Float[Tensor, "batch latent"], Float[Tensor, "batch latent"]]:
        """Mean and log variance of z given demonstrated chunks in dataset units.

        Raises:
            SceneError: if this policy has no CVAE encoder, or the chunks have another shape.
        """
        if not self.config.use_vae:
            raise SceneError("This policy was trained without a CVAE: it has no posterior.")
        like = self.action_head.weight
        action = action.to(like.device, torch.promote_types(like.dtype, torch.float32))
        action = action[None] if action.ndim == 2 else action
        needed = (inputs.batch_size, self.config.chunk, self.config.action_dim)
        if action.shape != needed:
            raise SceneError(f"The action has shape {tuple(action.shape)}; it must be {needed}.")
        if action_is_pad is None:
            action_is_pad = torch.zeros(action.shape[:2], dtype=torch.bool, device=action.device)
        if action_is_pad.numel() != action[..., 0].numel():
            raise SceneError(
                f"action_is_pad has shape {tuple(action_is_pad.shape)}; it must be {needed[:2]}."
            )
        action_is_pad = action_is_pad.reshape(needed[:2]).to(action.device)
        action = self.normalizer.normalize(ACTION_KEY, action).to(like.dtype)
        parameters = self.vae.posterior(action, action_is_pad, inputs.state)
        self.forward_count += 1
        return parameters

    # ── control ──────────────────────────────────────────────────────────────────────────────

    def reset(self) -> None:
        """Forget queued actions and restart the clock: call it before every episode."""
        self._queue = new_queue(self.config)
        self.clock.control_step = self.clock.inference_step = -1

    @torch.no_grad()
    def predict_action_chunk(self, observation: Observation | Scene) -> Actions:
        """The whole chunk for each observation, in dataset units, in eval mode; as LeRobot's."""
        self.eval()
        return self(observation)

    @torch.no_grad()
    def select_action(self, observation: Observation | Scene) -> Float[Tensor, "batch joint"]:
        """One action for this control step, in dataset units; as LeRobot's, tick by tick.

        The network runs only when the queue is empty (always with temporal ensembling), so hooks
        attached around a rollout fire at inference steps alone; `hook.clock` tells which.
        """
        self.clock.control_step += 1
        if self._queue.needs_chunk:
            self.clock.inference_step += 1
            self._queue.push(self.predict_action_chunk(observation))
        return self._queue.pop()

    # ── observations ─────────────────────────────────────────────────────────────────────────

    def prepare(self, observation: Observation | Scene) -> Inputs:
        """Check an observation, batch it, scale and normalise it, move it to the model.

        Raises:
            SceneError: naming the key, the shape it has and the shape it should have.
        """
        return prepare(observation, self.config, self.normalizer, like=self.action_head.weight)

    def entries(self, observation: Observation | Scene) -> dict[str, Tensor]:
        """What this policy reads of an observation: shapes checked, batched, otherwise as given.

        Raises:
            SceneError: naming the key, the shape it has and the shape it should have.
        """
        return read_entries(observation, self.config)

    # ── looking inside ───────────────────────────────────────────────────────────────────────

    def site(self, address: str) -> Site:
        """The part of an activation that an address such as `encoder.1.hook_out[top[3,7]]` names.

        Raises:
            HookNameError: if the hook point, an axis, a token or a joint does not exist.
        """
        name, selectors = split_address(address)
        point = self.hook_point(name)
        return Site(point.name or "", parse_where(selectors, point, self.tokens))

    def run_with_cache(
        self,
        *model_args: Any,
        names_filter: NamesFilter = None,
        device: torch.device | str | None = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        **model_kwargs: Any,
    ) -> tuple[Actions, ActivationCache]:
        """Run once and keep activations; see `HookedRootModule.run_with_cache`.

        Raises:
            SceneError: if `remove_batch_dim` is asked for with a batch larger than one.
        """
        if remove_batch_dim:
            given = model_args[0] if model_args else model_kwargs["observation"]
            size = self.prepare(given).batch_size
            if size != 1:
                raise SceneError(f"remove_batch_dim needs a batch of one, this one has {size}.")
        output, store = super().run_with_cache(
            *model_args,
            names_filter=names_filter,
            device=device,
            remove_batch_dim=remove_batch_dim,
            incl_bwd=incl_bwd,
            reset_hooks_end=reset_hooks_end,
            clear_contexts=clear_contexts,
            **model_kwargs,
        )
        return output, ActivationCache(
            store, self.hook_dict, self.hook_aliases, self.tokens, not remove_batch_dim
        )

    def cache_bytes(self, names_filter: NamesFilter = None, *, rows: int = 1) -> int:
        """The memory that `run_with_cache` will hold for a batch of `rows`, without running it.

        Exactly `ActivationCache.nbytes`: memory that several activations share counts once. Hooks
        that are attached to the model are left aside.

        Raises:
            HookNameError: if `names_filter` selects nothing.
            HookNeverFired: if a name that was asked for exactly is not reached at inference.
            SceneError: if `rows` is not positive.
        """
        kept = (
            value.untyped_storage() for value in dry_run(self, names_filter, rows=rows).values()
        )
        return sum({memory._cdata: memory.nbytes() for memory in kept}.values())

    @property
    def fused_attention(self) -> bool:
        """Whether blocks nobody looks into use fused attention (equal to float rounding).

        Off by default: explicit attention has the same bits whether hooks are attached or not.
        """
        return all(m.fused for m in self.modules() if isinstance(m, Attention))

    @fused_attention.setter
    def fused_attention(self, fused: bool) -> None:
        for module in self.modules():
            if isinstance(module, Attention):
                module.fused = fused


def _as_in_file(value: Tensor, dtype: torch.dtype) -> Tensor:
    stored = value.to(dtype)
    return stored if torch.equal(stored.to(value.dtype), value) else value.float()

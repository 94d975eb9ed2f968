"""Every field of a run, with its unit and source. A stage file is a delta on this one.

Values are those of the paper (arXiv 2507.23278) and its official code at size 1b. Change any of them
on the command line: `--config.batch_size=64`; an unknown field is refused with the nearest name.
"""

from typing import Any

import ml_collections

# InternVL's own: "You are InternVL, a multimodal language model made by Shanghai AI Laboratory …".
SYSTEM = ("你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
           "多模态大语言模型。")
PATH_KINDS = ("tar", "folder", "array_record", "own")  # of sources whose second word is a path
SIZES = ("tiny", "1b", "3b")
COMPILATION_CACHE = "~/.cache/unilip_jax/xla"  # of training, commands and the Python API


def get_config(size: str = "1b") -> ml_collections.ConfigDict:
  """Returns the fields that all stages share, for `size` in tiny | 1b | 3b."""
  if size not in SIZES:
    raise ValueError(f"unknown size {size!r}; choose {', '.join(SIZES)}")
  c = ml_collections.ConfigDict()
  c.stage = "base"  # name in logs and reports
  c.task = "reconstruct"  # a registered task (tasks/__init__.py), e.g. generate, understand, nft, grpo
  c.size = size  # dimensions, models/presets.py

  c.autoencoder = "unilip"  # unilip | dcae: what the reconstruct task trains

  # ---- length and batch
  c.seed = 0  # of random weights, data order and noise; any integer of 64 bits
  c.total_steps = 300_000  # optimizer updates; may change when a run is resumed
  c.batch_size = 128  # images per update over all devices (official: 32 per GPU × 4)
  # Micro-batches of one update, run one after another (optim/update.py), which divides the memory for
  # activations. 1 with a GAN, whose averages are of the complete batch.
  c.grad_accum_steps = 1
  c.image_size = 224  # pixels per side

  # ---- precision and memory
  c.dtype = "bfloat16"  # compute; parameters, norms, softmax and losses are float32
  # Precision of matrix multiplications of float32 arrays, e.g. in float32 teachers: without it TPUs take
  # bfloat16 passes and NVIDIA GPUs TF32. "default" leaves it to JAX. "bfloat16" rounds operands, on a CPU
  # those of dense layers (ops/matmul.py).
  c.float32_matmul_precision = "float32"
  c.remat = ml_collections.ConfigDict()
  c.remat.vit = "none"  # none | dots | full: what the backward pass recomputes (models/layers.py)
  c.remat.decoder = "none"  # pixel decoder
  c.remat.llm = "none"  # layers of LLM and connector
  c.remat.dit = "none"  # blocks of the DiT

  # Folder or bucket, e.g. gs://bucket/unilip, that relative inputs lie below: weights, tokenizer, data,
  # evaluation sets, the run to start from (configs/roots.py). "": the working directory.
  c.root = ""

  # ---- where weights come from (training/initial_state.py states the order of restoring)
  # Comma-separated, later ones win: workdirs, checkpoints, folders of imported weights, or
  # "shapes:<name>", weights that are included for the tiny size (shapes/pretrained.py).
  # "" starts from random weights.
  c.init_from = "weights/internvl3-1b,weights/dc-ae-f32c32-sana-1.1"
  c.resume = ""  # continue another run's checkpoint, optimizer and data position included

  # ---- what trains
  # Rows of (regex over the path, column values); the first match wins per column
  c.param_rules = (("^(vision_tower|mlp1)/", {"train": False}),)

  # ---- adapters (models/lora.py): what trains is A and B, the rest is frozen unless param_rules trains it
  c.lora = ml_collections.ConfigDict()
  # Rows of (regex over a dense layer's path, {rank, alpha}); the first match wins. () trains no adapters.
  # Paths are those of this package, e.g. "dit/layers/attn/qkv/q"; docs/lora.md has the names of PyTorch.
  c.lora.targets = ()
  c.lora.rank = 8  # of rows that name none (PEFT's default)
  c.lora.alpha = 8.0  # of rows that name none; the scale is alpha / rank (PEFT's default)
  c.lora.rslora = False  # scale alpha / √rank instead (rsLoRA)
  c.lora.dropout = 0.0  # of the input of A (PEFT's default)
  c.lora.init = "kaiming"  # of A: kaiming (PEFT) | gaussian (diffusers' scripts); B starts as zero
  c.lora.base_dtype = "bfloat16"  # of frozen weights: bfloat16 | int8 (models/quantization.py) | float32

  # ---- optimizer (AdamW), reference: official reconstruction training
  c.optimizer = ml_collections.ConfigDict()
  c.optimizer.lr = 1e-4  # highest learning rate, after the warm-up
  c.optimizer.end_lr = 1e-5  # learning rate at total_steps (cosine)
  c.optimizer.warmup_steps = 10_000  # updates of linear warm-up from 0
  c.optimizer.b1 = 0.9  # decay of the mean of gradients
  c.optimizer.b2 = 0.999  # decay of the mean of squared gradients
  c.optimizer.eps = 1e-8  # added to the root of that mean
  c.optimizer.weight_decay = 1e-4  # decoupled, times the learning rate
  # No decay on 1-d tensors and on names that contain one of these (official rule).
  c.optimizer.no_decay = ("ln", "bias", "norm", "gamma", "embed")
  c.optimizer.clip_norm = 1.0  # largest global norm of the gradient
  c.ema_decay = 0.999  # limit; warms up as (1+t)/(10+t). 0 keeps no EMA

  # ---- losses
  c.loss = ml_collections.ConfigDict()
  c.loss.l2 = 1.0  # weight of the mean squared error of pixels in [-1, 1]
  c.loss.perceptual = 1.1  # weight of (lpips·LPIPS + convnext·ConvNeXt)/(lpips + convnext)
  c.loss.lpips = 1.0  # share of LPIPS in the perceptual loss
  c.loss.convnext = 0.1  # share of ConvNeXt's logits in the perceptual loss
  c.loss.perceptual_weights = "weights/perceptual"  # VGG16 + LPIPS + ConvNeXt-Small, imported
  c.loss.perceptual_dtype = "float32"  # official
  c.loss.distill = 0.0  # MSE of mlp1's outputs to the frozen original
  c.loss.teacher_dtype = "float32"  # official
  # Precision of multiplications of float32 arrays in these frozen networks, where float32_matmul_precision
  # is "float32": "high" is three bfloat16 passes on TPUs (instead of six), TF32 on NVIDIA GPUs (official).
  c.loss.float32_matmul_precision = "high"
  # Weight of a token of an answer (the understand task) in a conversation with n answer tokens:
  # token n^0 | sample n^-1 | square n^-1/2 (InternVL2.5).
  c.loss.reduction = "square"

  # ---- discriminator; weight 0 builds none
  c.gan = ml_collections.ConfigDict()
  c.gan.weight = 0.0  # weight of the generator's loss
  c.gan.start_step = 0  # generator updates before the discriminator exists
  c.gan.lecam = 0.001  # weight of LeCam's regularisation
  c.gan.lecam_decay = 0.999  # of its averages
  c.gan.lr = 1e-4  # of the discriminator
  c.gan.end_lr = 1e-5  # of the discriminator, at the end of its schedule
  # The discriminator's schedule advances with its own updates; 0 means 4 × total_steps − start_step,
  # the official horizon on 4 GPUs.
  c.gan.warmup_steps = 40_000
  c.gan.horizon = 0  # updates of the discriminator's schedule; 0: see above
  c.gan.weight_decay = 1e-4  # of the discriminator

  # ---- generation (unilip_jax/tasks/generate.py)
  c.generate = ml_collections.ConfigDict()
  c.generate.condition = "both"  # both | queries | hidden: what the DiT reads (paper, ablation)
  c.generate.target = "unilip"  # unilip | dcae: whose latents are the target; gen1 takes DC-AE's
  c.generate.latent_scale = 0.0  # the DiT sees latents × this; 0 = that of the size (models/presets.py)
  c.generate.timestep_shift = 1.0  # of training times (ops/flow_schedules.py); 1 is official
  # Times and noise samples for each example of a step (official: 1). They share one pass of ViT, LLM and
  # connector, which pays where these cost more than the DiT.
  c.generate.noise_samples_per_image = 1

  # ---- distillation to a few steps (unilip_jax/tasks/distill.py)
  c.distill = ml_collections.ConfigDict()
  c.distill.method = "mean_flow"  # mean_flow (arXiv 2505.13447) | consistency (sCM, arXiv 2410.11081)
  c.distill.guidance = 4.5  # of the teacher, inside of the target; 1 is without guidance
  # Of mean_flow, at the first and the last update, between which they change evenly (EMF's):
  c.distill.time_means = (-0.5, 0.5)  # mean of the logit-normal noise levels
  c.distill.time_stds = (1.0, 2.0)  # their standard deviation before the sigmoid
  c.distill.zero_shares = (0.75, 0.25)  # share of steps of length 0, which learn the velocity itself
  # Half the width, in times of 0 … 1000, of the window over which derivatives with respect to the time are
  # averaged (models/time_embedding.py); 0 is the exact derivative.
  c.distill.time_smoothing = 10.0
  # mean_flow: the loss is ℓ / (ℓ + floor)^power, ℓ the sum of squared errors of an image's latents.
  c.distill.power = 1.0
  c.distill.floor = 1e-3  # see power; EMF's
  c.distill.tangent_warmup = 4000  # consistency: updates over which the tangent comes in (SANA-Sprint)

  # ---- reward training (tasks nft and grpo; unilip_jax/tasks/reward.py). batch_size counts prompts.
  c.reward = ml_collections.ConfigDict()
  # Rows (name, weight[, {option: value}]): shapes | judge | geneval, a plug-in's name, or module:function
  c.reward.terms = ()
  c.reward.workers = 1  # processes of each reward, on every host
  c.reward.timeout = 120.0  # seconds that the rewards of one rollout may take
  # stop | drop_group: what a reward does that fails, dies, is late or returns NaN. A dropped group (the
  # images of one prompt) is left out of the update and counted.
  c.reward.on_failure = "stop"
  c.reward.group_size = 24  # images of each prompt (official)
  c.reward.updates = 1  # updates per rollout, each on batch_size prompts of its own
  c.reward.steps = 10  # evaluations of the DiT for an image of a rollout, without guidance (official)
  c.reward.solver = "dpm"  # of rollouts: dpm | euler; the steps of grpo are those of euler
  c.reward.sub_batches = 1  # parts of a rollout that run one after another, which divides its memory
  # Advantages are divided by the deviation of all rewards of prompts, or of edits; else of the group's own.
  c.reward.global_std = True
  c.reward.adv_clip = 5.0  # largest absolute advantage
  # all | positive_only | negative_only | one_only | binary: how nft takes advantages (losses/advantages.py)
  c.reward.adv_mode = "all"
  # Decay of the policy that samples rollouts: 0 is on-policy, 1 and 2 are DiffusionNFT's schedules.
  c.reward.old_decay = 1
  # Weight of the distance to the network that the run started from, which is then kept (official: 1e-4).
  c.reward.kl = 0.0
  c.reward.beta = 1.0  # nft: inverse strength; 0.1 goes ten times as far as a sample
  c.reward.times = 9  # nft: times of the rollout's table that an image is trained at
  c.reward.window = 2  # grpo: stochastic steps, whose first is sampled in the noisy half of the rollout
  c.reward.clip_range = 1e-4  # grpo: of the ratio of probabilities; these are means over all latents
  c.reward.noise_level = 0.8  # grpo: of a stochastic step
  c.reward.step_kind = "cps"  # grpo: flow | cps | dance (ops/stochastic_steps.py)

  # ---- text (unilip_jax/data/text.py)
  c.text = ml_collections.ConfigDict()
  c.text.tokenizer = "weights/internvl3-1b/tokenizer.json"  # "shapes": that of Shapes
  c.text.t2i_length = 256  # tokens of a text→image prompt; longer ones lose their end
  c.text.edit_length = 512  # tokens of an instruction, image slots included
  c.text.chat_length = 1024  # tokens of a conversation, image slots included
  c.text.prompt_dropout = 0.1  # probability that a prompt is left out in training (guidance needs it)
  c.text.system = SYSTEM  # message that opens conversations

  # ---- data (unilip_jax/data/)
  c.data = ml_collections.ConfigDict()
  c.data.example = "reconstruct"  # reconstruct | t2i | prompt (both with edits, if any) | understand
  # Your own data instead of the rows below: a folder of images, with captions of the same name or a list, a
  # list of edits or conversations, Parquet, a dataset on disk, tars (docs/data.md, "Own images").
  c.data.own = ""
  c.data.own_prompt = ""  # prompt of own images without a caption
  c.data.own_caption = ""  # column of captions or instructions; "" finds text, prompt or caption
  c.data.own_layout = ""  # images | list | parquet | arrow | tar: where several are possible
  # Rows of (kind, path or pattern, weight); kind: tar | folder | array_record | tfds | own | shapes
  c.data.train = (
      ("tar", "data/BLIP3o-Pretrain-Short-Caption/*.tar", 0.2),
      ("tar", "data/BLIP3o-Pretrain-Long-Caption/*.tar", 0.6),
      ("tar", "data/BLIP3o-Pretrain-JourneyDB/*.tar", 0.2),
  )
  c.data.edit = ()  # rows of edits, in generation
  c.data.edit_share = 0.0  # share of edits in a generation batch: their size × repeat over that of all
  c.data.part_multiple = 16  # sub-batches are multiples of this, so that they divide over devices
  # random | center, after the shorter edge is resized (bicubic); stretch resizes without keeping the
  # aspect ratio
  c.data.crop = "random"
  # Aspect-ratio buckets of reconstruction and generation: sizes (height, width) in pixels, multiples of a
  # token's side with at most the tokens of image_size². A batch has images of one of them (data/aspect.py);
  # () has squares. docs/training.md has those of 448 px.
  c.data.buckets = ()
  c.data.flip = True  # horizontal, probability 0.5
  # exact | scaled: training decodes large JPEGs to a half or a quarter of their size, then resizes them.
  # That changes pixels (docs/data.md, "Speed"); evaluation, inference and cached latents are always exact.
  c.data.decode = "exact"
  # Refuse a source that leaves out more of its records, and stop when more of those read are broken.
  c.data.max_bad_fraction = 0.01
  c.data.max_pixels = 178_956_970  # a larger image counts as broken (decompression bombs)
  c.data.workers = 8  # decoding processes per host; 0 decodes in threads of this process
  c.data.prefetch = 2  # batches held on the device ahead of the step
  c.data.render_dir = ""  # where sources that render their data write it; "" = <workdir>/rendered
  # Where generation stores its target latents, computed once before the first step. "" computes them in
  # every step. Hosts share it.
  c.data.latents_dir = ""
  c.data.index_dir = ""  # where tar indices are cached; "" = <workdir>/index

  # ---- evaluation: one entry per evaluator and protocol (unilip_jax/evals/)
  c.eval = ml_collections.ConfigDict()
  c.eval.every_steps = 10_000  # updates between evaluations; 0 runs none
  c.eval.at_start = False  # also evaluate what the run starts from
  c.eval.batch_size = 64  # examples over all devices
  # Rows of (name, protocol, kind, path); protocol: 224 | 448 | pad256 | native (the training size)
  c.eval.sets = (("imagenet224", "224", "tar", "data/imagenet-val/*.tar"),)
  c.eval.max_examples = 0  # 0 = all
  c.eval.seed = 0  # of the noise that generated images start from; prompts do not depend on it
  c.eval.llm = ""  # weights whose LLM answers the protocol "questions" in the reconstruction stages
  c.eval.ssim_data_range_2 = True  # also report the official SSIMs (data_range 2 on [0, 1] images)
  # Imported Inception-v3 of FID, e.g. "weights/inception": reconstruction then reports rFID and inception
  # score. "" leaves them out.
  c.eval.inception = ""
  # torch-fidelity (UniLIP's kind) | unilip | pytorch-fid | clean-fid (evals/inception.py)
  c.eval.inception_protocol = "torch-fidelity"

  # ---- running
  c.mesh = ml_collections.ConfigDict()
  c.mesh.data = -1  # devices on this axis; -1 = all that remain
  # Devices that share one copy of the state, at most 64 (sharding/param_rules.py). -1 takes as many of a
  # slice or node as divide, at most 16.
  c.mesh.fsdp = -1
  # Groups of devices with a fast network inside, which `data` crosses and `fsdp` does not: 0 takes the
  # groups that devices report (TPU slices, NVLink domains), 1 treats all as one group.
  c.mesh.slices = 0
  # fsdp | replicated: whether fsdp shards frozen weights too. Replicated ones are never gathered, and take
  # as much memory on every device as on one.
  c.mesh.frozen_sharding = "fsdp"
  # layer | step: when weights that fsdp shards are gathered. "layer": in every layer that uses them, again
  # in the backward pass. "step": once, before the loss, in `dtype`, and gradients are summed over devices
  # in `dtype`. Sends less, and takes memory for one gathered copy and its gradients (docs/scaling.md).
  c.mesh.gather = "layer"
  c.mesh.min_shard_size = 2**16  # elements in one layer; smaller arrays stay replicated
  c.mesh.max_replicated = 2**26  # bytes of the largest array that fsdp may leave replicated; 0 = any
  c.log_every_steps = 50  # updates between rows of metrics and log lines
  # Where metrics, sample grids and the config go besides metrics.jsonl and TensorBoard: wandb | trackio.
  c.log = ml_collections.ConfigDict()
  c.log.sinks = ()  # of ("wandb", "trackio"); keys come from the environment, e.g. WANDB_API_KEY
  c.log.project = "unilip"  # in which the run appears
  c.log.name = ""  # of the run there; "" is the name of the workdir
  c.log.offline = False  # keep W&B's files in <workdir>/wandb, to be sent by `wandb sync`; trackio is local
  c.checkpoint_every_steps = 2_500  # updates between checkpoints; one follows the last update
  c.keep_checkpoints = 2  # newest ones kept
  c.keep_every_steps = 0  # also keep multiples of this for ever; 0 keeps none
  c.sample_every_steps = 5_000  # image grids (input | reconstruction)
  c.sample_count = 8  # images of a grid
  c.sample_set = ("reconstruct", "tar", "data/imagenet-val/*.tar")  # (example, kind, path)
  c.sample = ml_collections.ConfigDict()  # how generation stages make images
  c.sample.steps = 20  # evaluations of the DiT for an image
  c.sample.guidance = 4.5  # strength of the prompt; 1 is without guidance
  c.sample.guidance_interval = (0.0, 1.0)  # (lowest, highest) noise level σ at which guidance applies
  # How far the standard deviation of a guided velocity is set to that without guidance, 0 to 1; against
  # colours that strong guidance saturates (arXiv 2305.08891)
  c.sample.guidance_rescale = 0.0
  c.sample.solver = "dpm"  # dpm | euler
  c.profile_steps = ()  # (first, last): write an xprof trace of these steps
  # Of XLA, for the train step: "name=value,…"; docs/performance.md has two for few images a TPU chip.
  c.compiler_options = ""
  c.compilation_cache = COMPILATION_CACHE  # of compiled programs (docs/performance.md, Starts); "": none
  c.stop_on_nonfinite = True  # end the run at a loss or gradient norm that is not finite

  if size == "tiny":
    _make_tiny(c)
  elif size == "3b":
    c.init_from = "weights/internvl3-2b,weights/dc-ae-f32c32-sana-1.1"
    c.text.tokenizer = "weights/internvl3-2b/tokenizer.json"
  return c


def field(config: ml_collections.ConfigDict, name: str) -> Any:
  """Returns the value of a field by its name with dots, e.g. "data.train"."""
  for part in name.split("."):
    config = config[part]
  return config


def set_field(config: ml_collections.ConfigDict, name: str, value: Any) -> None:
  """Sets a field by its name with dots."""
  section, _, last = name.rpartition(".")
  (field(config, section) if section else config)[last] = value


def _make_tiny(c: ml_collections.ConfigDict) -> None:
  """Changes the fields for a run of minutes on two CPU cores, on scenes that it renders (shapes/)."""
  c.image_size = 112
  c.text.tokenizer = "shapes"
  c.text.system = ""
  c.text.t2i_length = 56
  c.text.edit_length = 56
  c.text.chat_length = 144
  c.data.part_multiple = 8
  c.mesh.fsdp = 1
  c.batch_size = 32
  c.total_steps = 300
  c.dtype = "float32"
  c.init_from = "shapes:mllm,shapes:dcae"  # included in the package (shapes/pretrained.py)
  c.optimizer.lr = 5e-4  # at 1e-3 stage 2's loss jumps, from 0.0024 to 0.018 near step 80
  c.optimizer.end_lr = 5e-5
  c.optimizer.warmup_steps = 50
  c.optimizer.clip_norm = 0.1  # gradient norms are near 0.05 here, 1.0 would never clip
  c.ema_decay = 0.99
  c.loss.perceptual = 0.0  # no perceptual weights are included
  c.loss.perceptual_weights = ""
  c.gan.warmup_steps = 20
  c.data.train = (("shapes", "train", 1.0),)  # tars are rendered into <workdir>/rendered when absent
  c.data.flip = False  # captions and questions distinguish left and right
  c.data.workers = 0
  c.eval.every_steps = 150
  c.eval.at_start = True
  c.eval.batch_size = 32
  # Test scenes, and scenes with combinations of shape and colour that training never shows.
  c.eval.sets = (("shapes", "native", "shapes", "test"), ("unseen", "native", "shapes", "unseen"),
                 ("scenes", "scenes", "shapes", "test"))
  c.eval.llm = "shapes:mllm"
  c.sample_set = ("reconstruct", "shapes", "test")
  c.sample.guidance = 2.0  # more distorts counts in Shapes
  c.log_every_steps = 10
  c.checkpoint_every_steps = 100
  c.sample_every_steps = 150

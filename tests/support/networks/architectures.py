"""Small versions of real networks with BatchNorm, from the `transformers` library.

Each function builds one network from a configuration (weights as the library initialises them, nothing is downloaded)
and the inputs it takes: images as (2, 3, 64, 64), speech as (2, time) or (2, time, features). Channel counts, heads
and depths are the smallest that keep every kind of layer of the original. Attention heads have 4, 16 or 64 channels
(and widths that a model takes the root of are 16 or 64), so that the factor is a power of two and exporters store
it without rounding.

The comment above each function says what is special about its BatchNorms.
"""

import torch
import transformers as hf
from torch import Tensor, nn

Built = tuple[nn.Module, tuple[Tensor, ...]]


def images(channels: int = 3, height: int = 64, width: int = 64) -> tuple[Tensor, ...]:
    return (torch.randn(2, channels, height, width),)


# Bottlenecks: conv→BN→ReLU, the branch sum after a BN.
def resnet() -> Built:
    config = hf.ResNetConfig(embedding_size=16, hidden_sizes=[16, 32, 48], depths=[2, 1, 1], layer_type="bottleneck")
    return hf.ResNetModel(config), images()


# Grouped convolutions and squeeze-and-excitation gates.
def regnet() -> Built:
    config = hf.RegNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 2], groups_width=8, layer_type="y")
    return hf.RegNetModel(config), images()


# TensorFlow's asymmetric padding as a separate Pad.
def mobilenet_v1() -> Built:
    config = hf.MobileNetV1Config(depth_multiplier=0.25, min_depth=8, image_size=64)
    return hf.MobileNetV1Model(config), images()


# Linear bottlenecks, dilated depthwise convolutions, a segmentation head.
def mobilenet_v2() -> Built:
    config = hf.MobileNetV2Config(depth_multiplier=0.25, min_depth=8, image_size=64, output_stride=16, num_labels=4)
    return hf.MobileNetV2ForSemanticSegmentation(config), images()


# Depthwise convolutions behind a ZeroPad2d; eps 1e-3.
def efficientnet() -> Built:
    config = hf.EfficientNetConfig(width_coefficient=0.25, depth_coefficient=0.4, image_size=64, hidden_dim=320)
    return hf.EfficientNetModel(config), images()


# BatchNorm1d after a Linear, on (batch · tokens, channels) between two reshapes.
def levit() -> Built:
    config = hf.LevitConfig(
        image_size=64,
        hidden_sizes=[32, 48, 64],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[16, 16, 16],
        attention_ratio=[2, 2, 2],
        mlp_ratio=[2, 2, 2],
    )
    return hf.LevitForImageClassification(config), images()


# Convolutions around transformers that work on unfolded patches.
def mobilevit() -> Built:
    config = hf.MobileViTConfig(
        image_size=64,
        hidden_sizes=[16, 64, 64],
        neck_hidden_sizes=[8, 8, 16, 16, 16, 24, 32],
        num_attention_heads=4,
        expand_ratio=2.0,
        aspp_out_channels=32,
        num_labels=3,
    )
    return hf.MobileViTForSemanticSegmentation(config), images()


# Separable attention; patches by im2col.
def mobilevitv2() -> Built:
    config = hf.MobileViTV2Config(image_size=64, width_multiplier=0.25, n_attn_blocks=[1, 1, 1], expand_ratio=2.0)
    return hf.MobileViTV2Model(config), images()


# One BN, in the decoder, after a bias-less 1×1 convolution over a Concat of upsampled maps.
def segformer() -> Built:
    config = hf.SegformerConfig(
        hidden_sizes=[16, 32, 48, 64],
        num_attention_heads=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=32,
        num_labels=5,
    )
    return hf.SegformerForSemanticSegmentation(config), images()


# BN before pointwise convolutions (foldable forward), layer scales.
def swiftformer() -> Built:
    config = hf.SwiftFormerConfig(image_size=64, depths=[1, 1, 1, 1], embed_dims=[16, 24, 32, 48], mlp_ratio=2)
    return hf.SwiftFormerModel(config), images()


# The ResNet-D of RT-DETR: an average pool before the shortcut convolution.
def rt_detr_resnet() -> Built:
    config = hf.RTDetrResNetConfig(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 2, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    return hf.RTDetrResNetBackbone(config), images()


# D-FINE's backbone: learnable affine blocks (scalar Mul and Add) after BN and ReLU.
def hgnet_v2() -> Built:
    config = hf.HGNetV2Config(
        embedding_size=16,
        hidden_sizes=[16, 32, 48, 64],
        depths=[1, 1, 2, 1],
        stem_channels=[3, 8, 16],
        stage_in_channels=[16, 16, 32, 48],
        stage_mid_channels=[8, 8, 16, 16],
        stage_out_channels=[16, 32, 48, 64],
        stage_num_blocks=[1, 1, 2, 1],
        stage_numb_of_layers=[2, 2, 2, 2],
        use_learnable_affine_block=True,
        out_features=["stage3", "stage4"],
    )
    return hf.HGNetV2Backbone(config), images()


# DETR's frozen BatchNorm: spelled out as multiplication and addition, no BatchNormalization node at all.
def detr_backbone() -> Built:
    from transformers.models.detr.modeling_detr import DetrConvEncoder

    backbone = hf.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48], depths=[1, 1, 1], out_features=["stage2", "stage3"]
    )
    mask = torch.ones(2, 64, 64, dtype=torch.bool)
    return DetrConvEncoder(hf.DetrConfig(backbone_config=backbone)), (*images(), mask)


# ConvTranspose→BN→ReLU in the pose head.
def vitpose() -> Built:
    backbone = hf.VitPoseBackboneConfig(
        image_size=[64, 48],
        patch_size=[16, 16],
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
    )
    config = hf.VitPoseConfig(backbone_config=backbone, use_simple_decoder=False, num_labels=5)
    return hf.VitPoseForPoseEstimation(config), images(3, 64, 48)


# ConvTranspose→BN→GELU→ConvTranspose in the feature pyramid; a pyramid pooling head.
def data2vec_vision() -> Built:
    config = hf.Data2VecVisionConfig(
        image_size=64,
        patch_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        out_indices=[1, 2, 3, 4],
        pool_scales=[1, 2],
        num_labels=4,
        use_auxiliary_head=False,
    )
    return hf.Data2VecVisionForSemanticSegmentation(config), images()


# Pre-activation residual units: the sum of a BN's output and of the unit's input.
def dpt() -> Built:
    config = hf.DPTConfig(
        image_size=64,
        patch_size=16,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[16, 24, 32, 32],
        fusion_hidden_size=24,
        use_batch_norm_in_fusion_residual=True,
        is_hybrid=False,
        num_labels=4,
    )
    return hf.DPTForSemanticSegmentation(config), images()


# A matting decoder: upsampling, Concat with detail maps, conv→BN.
def vitmatte() -> Built:
    backbone = hf.VitDetConfig(
        image_size=64,
        patch_size=16,
        num_channels=4,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        mlp_ratio=2,
        out_features=["stage2"],
    )
    config = hf.VitMatteConfig(
        backbone_config=backbone,
        hidden_size=32,
        convstream_hidden_sizes=[8, 12, 16],
        fusion_hidden_sizes=[32, 24, 16, 8],
    )
    return hf.VitMatteForImageMatting(config), images(4)


# Pyramid pooling over a ConvNeXt; conv→BN→ReLU only in the head.
def upernet() -> Built:
    backbone = hf.ConvNextConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 1, 1],
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = hf.UperNetConfig(
        backbone_config=backbone, hidden_size=16, pool_scales=[1, 2], num_labels=4, use_auxiliary_head=False
    )
    return hf.UperNetForSemanticSegmentation(config), images()


# BN with a class token split off and put back; depthwise conv→BN as the projection of attention.
def cvt() -> Built:
    config = hf.CvtConfig(embed_dim=[16, 64, 64], num_heads=[1, 2, 4], depth=[1, 2, 3], mlp_ratio=[2.0, 2.0, 2.0])
    return hf.CvtModel(config), images()


# Three parallel conv→BN branches (3×3, 3×1, 1×3) and an identity BN.
def textnet() -> Built:
    config = hf.TextNetConfig(
        stem_out_channels=16,
        hidden_sizes=[16, 16, 24, 32, 48],
        conv_layer_kernel_sizes=[
            [[3, 3], [3, 3]],
            [[3, 3], [1, 3]],
            [[3, 3], [3, 1]],
            [[3, 1], [1, 3]],
        ],
        conv_layer_strides=[[1, 2], [2, 1], [2, 1], [2, 1]],
    )
    return hf.TextNetModel(config), images()


# RepVGG in its training form: 3×3, 1×1 and identity branches, each with a BN.
def efficientloftr() -> Built:
    from transformers.models.efficientloftr.modeling_efficientloftr import EfficientLoFTRepVGG

    config = hf.EfficientLoFTRConfig(
        stage_num_blocks=[1, 2, 2, 2], out_features=[16, 16, 24, 32], stage_stride=[2, 1, 2, 2], hidden_size=32
    )
    return EfficientLoFTRepVGG(config), images(1)


LCNET_BLOCKS = [
    [[3, 16, 16, 1, False]],
    [[3, 16, 24, 2, False]],
    [[3, 24, 24, 1, False]],
    [[3, 24, 32, 2, False]],
    [[5, 32, 32, 1, True]],
]


# Depthwise separable convolutions with hard swish and squeeze-and-excitation.
def pp_lcnet() -> Built:
    # At inference this network multiplies by 1 - 0.25, exact in float32.
    config = hf.PPLCNetConfig(block_configs=LCNET_BLOCKS, class_expand=48, hidden_dropout_prob=0.25)
    return hf.PPLCNetForImageClassification(config), images()


# Several parallel k×k branches, a 1×1 branch and an identity, each with a BN; scalar affine blocks after.
def pp_lcnet_v3() -> Built:
    config = hf.PPLCNetV3Config(block_configs=LCNET_BLOCKS, conv_symmetric_num=2)
    return hf.PPLCNetV3Backbone(config), images()


# Dilated convolutions with bias before the BN; reflect padding.
def uvdoc() -> Built:
    backbone = hf.UVDocBackboneConfig(
        resnet_head=((3, 8), (8, 8)),
        resnet_configs=(((8, 8, 1, False), (8, 8, 3, False)), ((8, 16, 1, True), (16, 16, 3, False))),
        stage_configs=(((16, 1),), ((16, 2), (16, 3))),
        out_features=["stage1", "stage2"],
    )
    config = hf.UVDocConfig(
        backbone_config=backbone, bridge_connector=(16, 16), out_point_positions2D=((16, 8), (8, 2))
    )
    return hf.UVDocModel(config), images()


# Strided patch transformer with a depth decoder: conv→BN→conv→BN and a sigmoid gate between two maps.
def glpn() -> Built:
    config = hf.GLPNConfig(
        hidden_sizes=[16, 32, 48, 64],
        num_attention_heads=[1, 2, 3, 4],
        depths=[1, 1, 1, 1],
        decoder_hidden_size=16,
    )
    return hf.GLPNForDepthEstimation(config), images()


# Weight standardisation written as a batch_norm in training mode over the weights; GroupNorm otherwise.
def bit() -> Built:
    config = hf.BitConfig(embedding_size=16, hidden_sizes=[32, 64], depths=[1, 1], num_groups=8)
    return hf.BitModel(config), images()


# No BatchNorm at all.
def convnextv2() -> Built:
    config = hf.ConvNextV2Config(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    return hf.ConvNextV2Model(config), images()


# BatchNorm3d before its convolution, with a SiLU between.
def emu3_temporal_block() -> Built:
    from transformers.models.emu3.modeling_emu3 import Emu3VQVAETemporalResnetBlock

    return Emu3VQVAETemporalResnetBlock(8, 12), (torch.randn(2, 8, 4, 8, 8),)


# BatchNorm2d over the mel bins of the input, between two transposes; attentional feature fusion.
def clap_audio() -> Built:
    config = hf.ClapAudioConfig(
        window_size=4,
        num_mel_bins=16,
        spec_size=64,
        patch_size=4,
        patch_stride=[4, 4],
        hidden_size=64,
        patch_embeds_hidden_size=32,
        depths=[1, 1],
        num_attention_heads=[2, 4],
        enable_fusion=True,
    )
    return hf.ClapAudioModel(config), (torch.randn(2, 4, 256, 16), torch.tensor([True, True]))


SPEECH_SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
WAVEFORM_SIZES = {
    **SPEECH_SIZES,
    "conv_dim": [16, 16, 16],
    "conv_stride": [5, 2, 2],
    "conv_kernel": [10, 3, 2],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}


# BatchNorm1d after a depthwise Conv1d inside a conformer block.
def wav2vec2_conformer() -> Built:
    config = hf.Wav2Vec2ConformerConfig(**WAVEFORM_SIZES, position_embeddings_type="rotary")
    return hf.Wav2Vec2ConformerModel(config), (torch.randn(2, 800),)


# BatchNorm1d before a weight-normalised positional convolution.
def hubert() -> Built:
    config = hf.HubertConfig(**WAVEFORM_SIZES, conv_pos_batch_norm=True, feat_extract_norm="layer")
    return hf.HubertModel(config), (torch.randn(2, 800),)


# Conv1d→BN→tanh, five times.
def speecht5_postnet() -> Built:
    from transformers.models.speecht5.modeling_speecht5 import SpeechT5SpeechDecoderPostnet

    config = hf.SpeechT5Config(
        hidden_size=32,
        num_mel_bins=20,
        speech_decoder_postnet_units=32,
        speech_decoder_postnet_layers=4,
        reduction_factor=2,
    )
    return SpeechT5SpeechDecoderPostnet(config), (torch.randn(2, 12, 32),)


# A conformer's convolution module alone, with Conv1d biases.
def fastspeech2_convolution() -> Built:
    from transformers.models.fastspeech2_conformer.modeling_fastspeech2_conformer import (
        FastSpeech2ConformerConvolutionModule,
    )

    config = hf.FastSpeech2ConformerConfig(hidden_size=32)
    return FastSpeech2ConformerConvolutionModule(config, config.encoder_config), (torch.randn(2, 12, 32),)


# Conformer encoder with blockwise attention.
def granite_speech() -> Built:
    from transformers.models.granite_speech.modeling_granite_speech import GraniteSpeechCTCEncoder

    config = hf.GraniteSpeechEncoderConfig(
        input_dim=20,
        num_layers=2,
        hidden_dim=32,
        feedforward_mult=2,
        num_heads=2,
        dim_head=16,
        output_dim=12,
        context_size=8,
        max_pos_emb=16,
    )
    return GraniteSpeechCTCEncoder(config), (torch.randn(2, 16, 20),)


# Fast conformer: convolutional subsampling, relative positions.
def parakeet() -> Built:
    sizes = {**SPEECH_SIZES, "hidden_size": 64, "num_attention_heads": 4}
    config = hf.ParakeetEncoderConfig(**sizes, subsampling_conv_channels=8, num_mel_bins=16)
    return hf.ParakeetEncoder(config), (torch.randn(2, 64, 16),)


# BatchNorm1d over the channels of (batch · series, patches, channels), between two transposes, after a sum.
def patchtst() -> Built:
    config = hf.PatchTSTConfig(
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=4,
        d_model=32,
        num_attention_heads=2,
        num_hidden_layers=2,
        ffn_dim=48,
        norm_type="batchnorm",
        do_mask_input=False,
    )
    return hf.PatchTSTModel(config), (torch.randn(2, 32, 3),)


# BatchNorm1d before a Linear that mixes another axis.
def patchtsmixer() -> Built:
    config = hf.PatchTSMixerConfig(
        num_input_channels=3,
        context_length=32,
        patch_length=8,
        patch_stride=8,
        d_model=16,
        num_layers=2,
        norm_mlp="BatchNorm",
        mode="mix_channel",
    )
    return hf.PatchTSMixerModel(config), (torch.randn(2, 32, 3),)


# Linear→Transpose→BatchNorm1d→Transpose: the axis that a guess by size gets wrong.
def superglue_keypoints() -> Built:
    from transformers.models.superglue.modeling_superglue import SuperGlueKeypointEncoder

    config = hf.SuperGlueConfig(hidden_size=32, keypoint_encoder_sizes=[8, 16, 24])
    return SuperGlueKeypointEncoder(config), (torch.randn(2, 10, 2), torch.randn(2, 10))


# RepMixer (MobileCLIP): differences and sums of BNs with a layer scale.
def sam3_lite_text() -> Built:
    from transformers.models.sam3_lite_text.modeling_sam3_lite_text import Sam3LiteTextTextModel

    config = hf.Sam3LiteTextTextConfig(**SPEECH_SIZES, vocab_size=50, max_position_embeddings=12)
    return Sam3LiteTextTextModel(config), (torch.randint(0, 50, (2, 12)),)

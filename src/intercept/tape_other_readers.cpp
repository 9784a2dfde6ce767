#include <torch/csrc/autograd/functions/tensor.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include "tape_fields.hpp"
#include "tape_readers.hpp"

// Ops that rarely use parameters. The names of the inputs follow LibTorch's schemas, in the order of
// the arguments that have a derivative.
namespace torchlore::detail {
namespace {

// NOLINTNEXTLINE(google-build-using-namespace): 200 names of one namespace
using namespace torch::autograd::generated;

template <typename... Ns>
void add(TapeReaders& readers, TapeOp op, const TapeNames& inputs,
         const TapeRenames& results = {}) {
  (readers.emplace(
       typeid(Ns),
       TapeReader{.op = op, .inputs = inputs, .results = results, .read = &read_tape_fields<Ns>}),
   ...);
}

/// The op that ran on the view is a node within the node.
void read_copy_slices(torch::autograd::Node& base, TapeRecorder& record) {
  const auto& node = static_cast<torch::autograd::CopySlices&>(base);
  record.check_not_released(node.fn == nullptr);
  if (node.fn != nullptr) record("function", node.fn->name());
}

void add_elementwise(TapeReaders& r) {
  add<AbsBackward0, AcosBackward0, AcoshBackward0, AngleBackward0, AsinBackward0, AsinhBackward0,
      AtanBackward0, AtanhBackward0, CeilBackward0, ConjBackward0, ConjPhysicalBackward0,
      NegViewBackward0, CosBackward0, CoshBackward0, Deg2RadBackward0, DigammaBackward0,
      ErfBackward0, ErfcBackward0, ErfinvBackward0, Exp2Backward0, ExpBackward0, Expm1Backward0,
      FloorBackward0, FracBackward0, I0Backward0, LgammaBackward0, Log10Backward0, Log1PBackward0,
      Log2Backward0, LogBackward0, NanToNumBackward0, NegBackward0, PolygammaBackward0,
      Rad2DegBackward0, ReciprocalBackward0, RoundBackward0, RoundBackward1, RsqrtBackward0,
      SgnBackward0, SignBackward0, SinBackward0, SincBackward0, SinhBackward0, SqrtBackward0,
      TanBackward0, TanhBackward0, TruncBackward0>(r, TapeOp::elementwise, {"self"});
  add<CeluBackward0, CeluBackward1, EluBackward0, EluBackward1, GeluBackward0, HardshrinkBackward0,
      HardsigmoidBackward0, HardswishBackward0, HardtanhBackward0, LeakyReluBackward0,
      LeakyReluBackward1, LogSigmoidBackward0, LogitBackward0, MishBackward0, ReluBackward0,
      RreluWithNoiseBackward0, RreluWithNoiseBackward1, RreluWithNoiseFunctionalBackward0,
      SigmoidBackward0, SiluBackward0, SoftplusBackward0, SoftshrinkBackward0, ThresholdBackward0,
      ThresholdBackward1>(r, TapeOp::elementwise, {"self"});
  // With a number for the other argument.
  add<AddBackward1, SubBackward1, RsubBackward1, MulBackward1, DivBackward1, DivBackward3,
      PowBackward0, FmodBackward0, RemainderBackward0, ClampBackward1, ClampMinBackward0,
      ClampMaxBackward0, XlogyBackward2, CopysignBackward1>(r, TapeOp::elementwise, {"self"});
  add<XlogyBackward1>(r, TapeOp::elementwise, {"other"});
  add<PowBackward2>(r, TapeOp::elementwise, {"exponent"});
  add<AddBackward0, SubBackward0, RsubBackward0, MulBackward0, DivBackward0, DivBackward2,
      Atan2Backward0, MaximumBackward0, MinimumBackward0, FmaxBackward0, FminBackward0,
      FmodBackward1, RemainderBackward1, HypotBackward0, LogaddexpBackward0, Logaddexp2Backward0,
      XlogyBackward0, CopysignBackward0>(r, TapeOp::elementwise, {"self", "other"});
  add<PowBackward1>(r, TapeOp::elementwise, {"self", "exponent"});
  add<ClampBackward0>(r, TapeOp::elementwise, {"self", "min", "max"});
  add<ClampMinBackward1>(r, TapeOp::elementwise, {"self", "min"});
  add<ClampMaxBackward1>(r, TapeOp::elementwise, {"self", "max"});
  add<LerpBackward0>(r, TapeOp::elementwise, {"self", "end"});
  add<LerpBackward1>(r, TapeOp::elementwise, {"self", "end", "weight"});
  add<AddcmulBackward0, AddcdivBackward0>(r, TapeOp::elementwise, {"self", "tensor1", "tensor2"});
  add<WhereBackward0>(r, TapeOp::elementwise, {"self", "other"});
  add<MaskedFillBackward0>(r, TapeOp::elementwise, {"self"});
  add<MaskedFillBackward1>(r, TapeOp::elementwise, {"self", "value"});
  add<TrilBackward0, TriuBackward0>(r, TapeOp::elementwise, {"self"});
}

void add_reductions(TapeReaders& r) {
  add<SumBackward0, SumBackward1, NansumBackward0, MeanBackward0, MeanBackward1, ProdBackward0,
      ProdBackward1, StdBackward0, VarBackward0, VarMeanBackward0, LogsumexpBackward0, MaxBackward1,
      MinBackward1, AmaxBackward0, AminBackward0, NormBackward0, NormBackward1, NormBackward2,
      NormBackward3, LinalgVectorNormBackward0, TraceBackward0, CumsumBackward0, CumprodBackward0,
      LogcumsumexpBackward0, MedianBackward0, NanmedianBackward0>(r, TapeOp::reduction, {"self"});
  add<MaxBackward0, MinBackward0, MedianBackward1, NanmedianBackward1, ModeBackward0,
      KthvalueBackward0, CummaxBackward0, CumminBackward0>(r, TapeOp::reduction, {"self"});
  add<StdMeanBackward0>(r, TapeOp::reduction, {"self"}, {{"result0", "std"}});
  add<DistBackward0>(r, TapeOp::reduction, {"self", "other"});
  add<CdistBackward0, EuclideanDistBackward0>(r, TapeOp::reduction, {"x1", "x2"});
  add<PdistBackward0, RenormBackward0, GluBackward0>(r, TapeOp::reduction, {"self"});
}

void add_losses(TapeReaders& r) {
  add<MseLossBackward0, SmoothL1LossBackward0, HuberLossBackward0, BinaryCrossEntropyBackward0,
      BinaryCrossEntropyWithLogitsBackward0>(r, TapeOp::loss, {"self", "target"});
  add<NllLossBackward0, NllLoss2DBackward0, MultiMarginLossBackward0, MultilabelMarginLossBackward0,
      SoftMarginLossBackward0>(r, TapeOp::loss, {"self"});
  const TapeRenames results{{"result0", "neg_log_likelihood"}, {"result1", "log_alpha"}};
  add<CtcLossBackward0, CtcLossBackward1, CudnnCtcLossBackward0, CudnnCtcLossBackward1>(
      r, TapeOp::loss, {"log_probs"}, results);
}

void add_pooling(TapeReaders& r) {
  add<AvgPool2DBackward0, AvgPool3DBackward0, AdaptiveAvgPool2DBackward0,
      AdaptiveAvgPool3DBackward0, MaxPool2DBackward0, MkldnnMaxPool2DBackward0,
      MkldnnMaxPool3DBackward0, MkldnnAdaptiveAvgPool2DBackward0, MaxUnpool2DBackward0,
      MaxUnpool3DBackward0>(r, TapeOp::pooling, {"self"});
  add<AdaptiveMaxPool2DBackward0, AdaptiveMaxPool3DBackward0, MaxPool2DWithIndicesBackward0,
      MaxPool3DWithIndicesBackward0, FractionalMaxPool2DBackward0, FractionalMaxPool3DBackward0>(
      r, TapeOp::pooling, {"self"}, {{"result1", "indices"}});
  add<ConstantPadNdBackward0, ReflectionPad1DBackward0, ReflectionPad2DBackward0,
      ReflectionPad3DBackward0, ReplicationPad1DBackward0, ReplicationPad2DBackward0,
      ReplicationPad3DBackward0>(r, TapeOp::padding, {"self"});
  add<UpsampleLinear1DBackward0, UpsampleBilinear2DBackward0, UpsampleBilinear2DAaBackward0,
      UpsampleBicubic2DBackward0, UpsampleBicubic2DAaBackward0, UpsampleTrilinear3DBackward0,
      UpsampleNearest1DBackward0, UpsampleNearestExact1DBackward0, UpsampleNearest2DBackward0,
      UpsampleNearestExact2DBackward0, UpsampleNearest3DBackward0, UpsampleNearestExact3DBackward0>(
      r, TapeOp::resampling, {"self"});
  add<GridSampler2DBackward0, GridSampler3DBackward0, GridSampler2DCpuFallbackBackward0>(
      r, TapeOp::resampling, {"input", "grid"});
  add<CudnnGridSamplerBackward0>(r, TapeOp::resampling, {"self", "grid"});
}

void add_views(TapeReaders& r) {
  add<AliasBackward0, AsStridedBackward0, AsStridedBackward1, ChunkBackward0, CloneBackward0,
      LazyCloneBackward0, DiagonalBackward0, ExpandBackward0, FlipBackward0, LiftBackward0,
      LiftFreshBackward0, MkldnnReshapeBackward0, PermuteBackward0, PixelShuffleBackward0,
      PixelUnshuffleBackward0, ChannelShuffleBackward0, RepeatBackward0, ReshapeAliasBackward0,
      ReshapeCopyBackward0, RollBackward0, Rot90Backward0, SelectBackward0, SliceBackward0,
      SplitBackward0, SplitWithSizesBackward0, SqueezeBackward0, SqueezeBackward1, SqueezeBackward2,
      SqueezeBackward3, SqueezeBackward4, SqueezeBackward5, TBackward0, TBackward1, ToCopyBackward0,
      ToDenseBackward0, ToMkldnnBackward0, TransposeBackward0, TransposeBackward1, UnbindBackward0,
      UnfoldBackward0, UnsafeSplitBackward0, UnsafeSplitWithSizesBackward0, UnsafeViewBackward0,
      UnsqueezeBackward0, UnsqueezeBackward1, ViewBackward0, ViewAsComplexBackward0,
      ViewAsRealBackward0, PinMemoryBackward0>(r, TapeOp::view, {"self"});
  r.emplace(typeid(torch::autograd::CopyBackwards),
            TapeReader{.op = TapeOp::view, .inputs = {"self", "src"}});
  add<CatBackward0, StackBackward0, BlockDiagBackward0>(r, TapeOp::join, {"tensors…"});
  add<ComplexBackward0>(r, TapeOp::join, {"real", "imag"});
  add<SliceScatterBackward0, SelectScatterBackward0, DiagonalScatterBackward0,
      AsStridedScatterBackward0>(r, TapeOp::join, {"self", "src"});
}

void add_indexing(TapeReaders& r) {
  add<IndexBackward0, UnsafeIndexBackward0, IndexSelectBackward0, GatherBackward0, TakeBackward0,
      MaskedSelectBackward0, SortBackward0, SortBackward1, TopkBackward0, IndexFillBackward0,
      ScatterBackward1, Im2ColBackward0, Col2ImBackward0, DiagEmbedBackward0>(r, TapeOp::indexing,
                                                                              {"self"});
  add<IndexPutBackward0, UnsafeIndexPutBackward0, IndexPutImplBackward0>(r, TapeOp::indexing,
                                                                         {"self", "values"});
  add<IndexAddBackward0, IndexCopyBackward0, MaskedScatterBackward0, PutBackward0>(
      r, TapeOp::indexing, {"self", "source"});
  add<IndexFillBackward1>(r, TapeOp::indexing, {"self", "value"});
  add<ScatterBackward0, ScatterAddBackward0, ScatterReduceBackward0>(r, TapeOp::indexing,
                                                                     {"self", "src"});
  add<PackPaddedSequenceBackward0>(r, TapeOp::indexing, {"input"}, {{"result1", "batch_sizes"}});
}

}  // namespace

void add_other_readers(TapeReaders& r) {
  add_elementwise(r);
  add_reductions(r);
  add_losses(r);
  add_pooling(r);
  add_views(r);
  add_indexing(r);
  r.emplace(typeid(torch::autograd::CopySlices), TapeReader{.op = TapeOp::in_place_view,
                                                            .inputs = {"base", "arguments…"},
                                                            .read = &read_copy_slices});
}

}  // namespace torchlore::detail

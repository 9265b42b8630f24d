// This instruction set's kernels, in one table.
#include "kernels.h"
#include "probes.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

LinearKernel linear_float32, linear_float16, linear_bfloat16, linear_int8, linear_int4, linear_codes4,
    linear_codes8, linear_mxfp4;
OperandKernel operand_float32, operand_bfloat16, operand_int8;
NormKernel norm;
GatedKernel gated;
EmbedKernel embed;
SoftcapKernel softcap;
RopeWriteKernel rope_write;
LatentQueryKernel latent_query;
LatentKeyKernel latent_key;
AttentionKernel attention_bfloat16, attention_float32, attention_int8;
SampleKernel sample;
AddKernel add;
RouteKernel route;
CombineKernel combine;
CausalConvKernel causal_conv;
SelectiveScanKernel selective_scan;
GatedNormKernel gated_norm;
ReadProbe read_probe;
FlopsProbe float32_probe, int8_probe;

#define PENSTOCK_TEXT2(x) #x
#define PENSTOCK_TEXT(x) PENSTOCK_TEXT2(x)

const KernelTable& table() noexcept {
    static constexpr KernelTable kTable{PENSTOCK_TEXT(PENSTOCK_ISA),
                                        linear_float32,
                                        linear_float16,
                                        linear_bfloat16,
                                        linear_int8,
                                        linear_int4,
                                        linear_codes4,
                                        linear_codes8,
                                        linear_mxfp4,
                                        operand_float32,
                                        operand_bfloat16,
                                        operand_int8,
                                        norm,
                                        gated,
                                        embed,
                                        softcap,
                                        rope_write,
                                        latent_query,
                                        latent_key,
                                        attention_bfloat16,
                                        attention_float32,
                                        attention_int8,
                                        sample,
                                        add,
                                        route,
                                        combine,
                                        causal_conv,
                                        selective_scan,
                                        gated_norm};
    return kTable;
}

const ProbeTable& probes() noexcept {
    static constexpr ProbeTable kProbes{read_probe, float32_probe, int8_probe, nullptr, nullptr};
    return kProbes;
}

}  // namespace penstock::PENSTOCK_ISA

/* Compiles only when tflite_abi.h lays everything out as TensorFlow Lite's own header does.
 *
 *     gcc -fsyntax-only check_abi.c     (with Debian's libtensorflow-lite-dev, or -I its headers)
 */
#include <tensorflow/lite/core/c/common.h>

#include "tflite_abi.h"

#define SAME_SIZE(ours, theirs) \
    _Static_assert(sizeof(struct ours) == sizeof(theirs), "the size of " #theirs " differs")
#define SAME_AS(ours, our_member, theirs, their_member)                                   \
    _Static_assert(offsetof(struct ours, our_member) == offsetof(theirs, their_member) && \
                       sizeof(((struct ours *)0)->our_member) ==                          \
                           sizeof(((theirs *)0)->their_member),                           \
                   #theirs "." #their_member " lies elsewhere")
#define SAME(ours, theirs, member) SAME_AS(ours, member, theirs, member)

_Static_assert((int)ABI_OK == (int)kTfLiteOk, "kTfLiteOk");
_Static_assert((int)ABI_ERROR == (int)kTfLiteError, "kTfLiteError");
_Static_assert((int)ABI_ALLOW_DYNAMIC_TENSORS == (int)kTfLiteDelegateFlagsAllowDynamicTensors,
               "kTfLiteDelegateFlagsAllowDynamicTensors");

SAME_SIZE(abi_int_array, TfLiteIntArray);
SAME(abi_int_array, TfLiteIntArray, size);
_Static_assert(offsetof(struct abi_int_array, data) == offsetof(TfLiteIntArray, data), "data");

SAME_SIZE(abi_quantisation_params, TfLiteQuantizationParams);
SAME_SIZE(abi_quantisation, TfLiteQuantization);

SAME_SIZE(abi_tensor, TfLiteTensor);
SAME(abi_tensor, TfLiteTensor, type);
SAME(abi_tensor, TfLiteTensor, data);
SAME(abi_tensor, TfLiteTensor, dims);
SAME(abi_tensor, TfLiteTensor, params);
SAME(abi_tensor, TfLiteTensor, allocation_type);
SAME(abi_tensor, TfLiteTensor, bytes);
SAME(abi_tensor, TfLiteTensor, allocation);
SAME(abi_tensor, TfLiteTensor, name);
SAME(abi_tensor, TfLiteTensor, delegate);
SAME(abi_tensor, TfLiteTensor, buffer_handle);
SAME(abi_tensor, TfLiteTensor, data_is_stale);
SAME(abi_tensor, TfLiteTensor, is_variable);
SAME_AS(abi_tensor, quantisation, TfLiteTensor, quantization);
SAME(abi_tensor, TfLiteTensor, sparsity);
SAME(abi_tensor, TfLiteTensor, dims_signature);

SAME_SIZE(abi_node, TfLiteNode);
SAME(abi_node, TfLiteNode, inputs);
SAME(abi_node, TfLiteNode, outputs);
SAME(abi_node, TfLiteNode, user_data);
SAME(abi_node, TfLiteNode, custom_initial_data);
SAME(abi_node, TfLiteNode, custom_initial_data_size);
SAME(abi_node, TfLiteNode, delegate);
SAME(abi_node, TfLiteNode, might_have_side_effect);

SAME_SIZE(abi_delegate_params, TfLiteDelegateParams);
SAME(abi_delegate_params, TfLiteDelegateParams, delegate);
SAME(abi_delegate_params, TfLiteDelegateParams, nodes_to_replace);
SAME(abi_delegate_params, TfLiteDelegateParams, input_tensors);
SAME(abi_delegate_params, TfLiteDelegateParams, output_tensors);

SAME_SIZE(abi_registration_v1, TfLiteRegistration_V1);
SAME_SIZE(abi_registration, TfLiteRegistration);
SAME(abi_registration, TfLiteRegistration, init);
SAME(abi_registration, TfLiteRegistration, free);
SAME(abi_registration, TfLiteRegistration, prepare);
SAME(abi_registration, TfLiteRegistration, invoke);
SAME(abi_registration, TfLiteRegistration, profiling_string);
SAME(abi_registration, TfLiteRegistration, builtin_code);
SAME(abi_registration, TfLiteRegistration, custom_name);
SAME(abi_registration, TfLiteRegistration, version);
SAME(abi_registration, TfLiteRegistration, registration_external);
SAME(abi_registration, TfLiteRegistration, async_kernel);
SAME(abi_registration, TfLiteRegistration, inplace_operator);

SAME(abi_context, TfLiteContext, tensors_size);
SAME(abi_context, TfLiteContext, GetExecutionPlan);
SAME(abi_context, TfLiteContext, tensors);
SAME(abi_context, TfLiteContext, ReportError);
SAME(abi_context, TfLiteContext, GetNodeAndRegistration);
SAME(abi_context, TfLiteContext, ReplaceNodeSubsetsWithDelegateKernels);

SAME_SIZE(abi_delegate, TfLiteDelegate);
SAME(abi_delegate, TfLiteDelegate, data_);
SAME(abi_delegate, TfLiteDelegate, Prepare);
SAME(abi_delegate, TfLiteDelegate, CopyFromBufferHandle);
SAME(abi_delegate, TfLiteDelegate, CopyToBufferHandle);
SAME(abi_delegate, TfLiteDelegate, FreeBufferHandle);
SAME(abi_delegate, TfLiteDelegate, flags);
SAME(abi_delegate, TfLiteDelegate, opaque_delegate_builder);

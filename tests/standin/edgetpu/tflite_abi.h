/* What an external delegate needs of TensorFlow Lite's C interface, written by hand.
 *
 * The types carry names of their own, so that check_abi.c can hold each of them to the real one in
 * Debian's libtensorflow-lite-dev where that is installed. Members that a delegate never touches
 * are here only for their size. The layout is the one of TensorFlow 2.14 and of LiteRT 2.x.
 */
#ifndef TFLITE_ABI_H
#define TFLITE_ABI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum abi_status { ABI_OK = 0, ABI_ERROR = 1 };
enum { ABI_ALLOW_DYNAMIC_TENSORS = 1 };

struct abi_int_array {
    int size;
    int data[];
};

struct abi_quantisation_params {
    float scale;
    int32_t zero_point;
};

struct abi_quantisation {
    int type;
    void *params;
};

struct abi_delegate;
struct abi_registration;

struct abi_tensor {
    int type;
    void *data;
    struct abi_int_array *dims;
    struct abi_quantisation_params params;
    int allocation_type;
    size_t bytes;
    const void *allocation;
    const char *name;
    struct abi_delegate *delegate;
    int buffer_handle;
    bool data_is_stale;
    bool is_variable;
    struct abi_quantisation quantisation;
    void *sparsity;
    const struct abi_int_array *dims_signature;
};

struct abi_node {
    struct abi_int_array *inputs;
    struct abi_int_array *outputs;
    struct abi_int_array *intermediates;
    struct abi_int_array *temporaries;
    void *user_data;
    void *builtin_data;
    const void *custom_initial_data;
    int custom_initial_data_size;
    struct abi_delegate *delegate;
    bool might_have_side_effect;
};

struct abi_delegate_params {
    struct abi_delegate *delegate;
    struct abi_int_array *nodes_to_replace;
    struct abi_int_array *input_tensors;
    struct abi_int_array *output_tensors;
};

struct abi_context;

/* What TensorFlow up to 2.11 knew: 64 bytes. */
struct abi_registration_v1 {
    void *(*init)(struct abi_context *, const char *buffer, size_t length);
    void (*free)(struct abi_context *, void *buffer);
    enum abi_status (*prepare)(struct abi_context *, struct abi_node *);
    enum abi_status (*invoke)(struct abi_context *, struct abi_node *);
    const char *(*profiling_string)(const struct abi_context *, const struct abi_node *);
    int32_t builtin_code;
    const char *custom_name;
    int version;
};

struct abi_registration {
    void *(*init)(struct abi_context *, const char *buffer, size_t length);
    void (*free)(struct abi_context *, void *buffer);
    enum abi_status (*prepare)(struct abi_context *, struct abi_node *);
    enum abi_status (*invoke)(struct abi_context *, struct abi_node *);
    const char *(*profiling_string)(const struct abi_context *, const struct abi_node *);
    int32_t builtin_code;
    const char *custom_name;
    int version;
    void *registration_external;
    void *(*async_kernel)(struct abi_context *, struct abi_node *);
    uint64_t inplace_operator;
};

/* The struct goes by value, so its size is part of the call. */
#ifdef TOO_OLD
typedef struct abi_registration_v1 abi_registered;
#else
typedef struct abi_registration abi_registered;
#endif

/* Only the beginning: the runtime owns it and passes a pointer. */
struct abi_context {
    size_t tensors_size;
    enum abi_status (*GetExecutionPlan)(struct abi_context *, struct abi_int_array **plan);
    struct abi_tensor *tensors;
    void *impl_;
    enum abi_status (*ResizeTensor)(struct abi_context *, struct abi_tensor *,
                                    struct abi_int_array *new_size);
    void (*ReportError)(struct abi_context *, const char *format, ...);
    enum abi_status (*AddTensors)(struct abi_context *, int count, int *first_index);
    enum abi_status (*GetNodeAndRegistration)(struct abi_context *, int node_index,
                                              struct abi_node **, struct abi_registration **);
    enum abi_status (*ReplaceNodeSubsetsWithDelegateKernels)(
        struct abi_context *, abi_registered, const struct abi_int_array *nodes,
        struct abi_delegate *);
};

struct abi_delegate {
    void *data_;
    enum abi_status (*Prepare)(struct abi_context *, struct abi_delegate *);
    enum abi_status (*CopyFromBufferHandle)(struct abi_context *, struct abi_delegate *,
                                            int handle, struct abi_tensor *);
    enum abi_status (*CopyToBufferHandle)(struct abi_context *, struct abi_delegate *, int handle,
                                          struct abi_tensor *);
    void (*FreeBufferHandle)(struct abi_context *, struct abi_delegate *, int *handle);
    int64_t flags;
    void *opaque_delegate_builder; /* the runtime calls Prepare only while this is NULL */
};

#endif

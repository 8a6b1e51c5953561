/* A stand-in for libedgetpu.so.1: the same entry points, with a process in the device's place.
 *
 * The device process (device.py) listens on the Unix socket $EDGETPU_STANDIN/socket. Everything
 * that a device decides, it decides, faults included; this library only does to its host process
 * what the real one does: it says nothing when opening fails, it holds its caller for as long as
 * the device is silent, and it aborts the process when the device goes away in mid-transfer.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tflite_abi.h"

#define EXPORT __attribute__((visibility("default")))
#define FOLDER_VARIABLE "EDGETPU_STANDIN"
#define CUSTOM_OP "edgetpu-custom-op"

/* ---- The wire: a header and so many bytes, in the machine's own byte order. ---- */

enum request { OPEN = 1, INVOKE = 2 };
enum reply { OK = 0, FAILED = 1, FATAL = 2, REFUSED = 3 };

struct header {
    uint32_t kind;
    uint32_t bytes;
};

struct device {
    struct abi_delegate delegate; /* first: the runtime's pointer to it is the device's too */
    int socket;
};

static bool in_folder(const char *name, char *path, size_t size) {
    const char *folder = getenv(FOLDER_VARIABLE);
    return folder && (size_t)snprintf(path, size, "%s/%s", folder, name) < size;
}

/* Return a connected socket, or -1: there is no device. */
static int connect_device(int flags) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (!in_folder("socket", address.sun_path, sizeof address.sun_path)) return -1;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | flags, 0);
    if (fd < 0) return -1;
    /* EAGAIN, only when not blocking: the device does not accept, but it is there. */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN) return fd;
    close(fd);
    return -1;
}

static bool send_all(int fd, const void *data, size_t bytes) {
    for (const char *at = data; bytes > 0;) {
        ssize_t sent = send(fd, at, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent <= 0) return false;
        at += sent;
        bytes -= (size_t)sent;
    }
    return true;
}

static bool receive_all(int fd, void *data, size_t bytes) {
    for (char *at = data; bytes > 0;) {
        ssize_t received = recv(fd, at, bytes, MSG_WAITALL);
        if (received < 0 && errno == EINTR) continue;
        if (received <= 0) return false;
        at += received;
        bytes -= (size_t)received;
    }
    return true;
}

/* ---- Losing the device. ---- */

static void die(const char *message) {
    fprintf(stderr, "F :1124] %s\n", message);
    fflush(stderr);
    abort();
}

/* The real library aborts on a USB transfer error. Some of its paths return an error instead,
 * which the file `loss_is_an_error` in the device's folder asks for. */
static enum abi_status lost(struct abi_context *context) {
    char path[4096];
    if (!in_folder("loss_is_an_error", path, sizeof path) || access(path, F_OK) != 0)
        die("HandleQueuedBulkIn transfer in failed. Not found: USB transfer error 5 "
            "[LibUsbDataInCallback]");
    context->ReportError(context, "Failed to execute request. Not found: device is gone.");
    return ABI_ERROR;
}

/* ---- The kernel that takes the place of an edgetpu-custom-op node. ---- */

struct kernel {
    struct device *device;
    struct abi_int_array *inputs; /* tensor indices, in the order of the compiled operator */
    struct abi_int_array *outputs;
};

static struct abi_int_array *copy(const struct abi_int_array *from) {
    size_t bytes = sizeof *from + (size_t)from->size * sizeof from->data[0];
    struct abi_int_array *to = malloc(bytes);
    if (to) memcpy(to, from, bytes);
    return to;
}

static void kernel_free(struct abi_context *context, void *buffer) {
    (void)context;
    struct kernel *kernel = buffer;
    if (!kernel) return;
    free(kernel->inputs);
    free(kernel->outputs);
    free(kernel);
}

static void *kernel_init(struct abi_context *context, const char *buffer, size_t length) {
    (void)length;
    const struct abi_delegate_params *params = (const void *)buffer;
    struct abi_node *node;
    struct abi_registration *registration;
    if (params->nodes_to_replace->size != 1 ||
        context->GetNodeAndRegistration(context, params->nodes_to_replace->data[0], &node,
                                        &registration) != ABI_OK)
        return NULL;
    struct kernel *kernel = calloc(1, sizeof *kernel);
    if (!kernel) return NULL;
    kernel->device = (struct device *)params->delegate;
    kernel->inputs = copy(node->inputs);
    kernel->outputs = copy(node->outputs);
    if (kernel->inputs && kernel->outputs) return kernel;
    kernel_free(context, kernel);
    return NULL;
}

static enum abi_status kernel_prepare(struct abi_context *context, struct abi_node *node) {
    (void)context;
    return node->user_data ? ABI_OK : ABI_ERROR;
}

static size_t total_bytes(const struct abi_context *context, const struct abi_int_array *indices) {
    size_t bytes = 0;
    for (int i = 0; i < indices->size; i++) bytes += context->tensors[indices->data[i]].bytes;
    return bytes;
}

static enum abi_status read_outputs(struct abi_context *context, const struct kernel *kernel,
                                    size_t bytes) {
    if (bytes != total_bytes(context, kernel->outputs)) {
        context->ReportError(context, "The device's model has other outputs (%d bytes).",
                             (int)bytes);
        return ABI_ERROR;
    }
    for (int i = 0; i < kernel->outputs->size; i++) {
        struct abi_tensor *tensor = &context->tensors[kernel->outputs->data[i]];
        if (!receive_all(kernel->device->socket, tensor->data, tensor->bytes)) return lost(context);
    }
    return ABI_OK;
}

static enum abi_status kernel_invoke(struct abi_context *context, struct abi_node *node) {
    const struct kernel *kernel = node->user_data;
    int fd = kernel->device->socket;
    struct header header = {INVOKE, (uint32_t)total_bytes(context, kernel->inputs)};
    if (!send_all(fd, &header, sizeof header)) return lost(context);
    for (int i = 0; i < kernel->inputs->size; i++) {
        const struct abi_tensor *tensor = &context->tensors[kernel->inputs->data[i]];
        if (!send_all(fd, tensor->data, tensor->bytes)) return lost(context);
    }
    if (!receive_all(fd, &header, sizeof header)) return lost(context);
    if (header.kind == OK) return read_outputs(context, kernel, header.bytes);

    char message[256] = "";
    if (header.bytes >= sizeof message || !receive_all(fd, message, header.bytes))
        return lost(context);
    if (header.kind == FATAL) die(message);
    context->ReportError(context, "%s", message);
    return ABI_ERROR;
}

/* ---- The delegate. ---- */

static enum abi_status replace(struct abi_context *context, struct abi_delegate *delegate,
                               int node_index) {
    struct {
        int size;
        int data[1];
    } only = {1, {node_index}};
    abi_registered registration = {
        .init = kernel_init,
        .free = kernel_free,
        .prepare = kernel_prepare,
        .invoke = kernel_invoke,
        .custom_name = "EdgeTpuDelegateForCustomOp",
        .version = 1,
    };
    return context->ReplaceNodeSubsetsWithDelegateKernels(
        context, registration, (const struct abi_int_array *)&only, delegate);
}

static enum abi_status claim(struct abi_context *context, struct abi_delegate *delegate) {
    struct abi_int_array *plan;
    if (context->GetExecutionPlan(context, &plan) != ABI_OK) return ABI_ERROR;
    plan = copy(plan); /* replacing a node changes the runtime's own */
    if (!plan) return ABI_ERROR;
    enum abi_status status = ABI_OK;
    for (int i = 0; i < plan->size && status == ABI_OK; i++) {
        struct abi_node *node;
        struct abi_registration *registration;
        status = context->GetNodeAndRegistration(context, plan->data[i], &node, &registration);
        if (status == ABI_OK && registration->custom_name &&
            strcmp(registration->custom_name, CUSTOM_OP) == 0)
            status = replace(context, delegate, plan->data[i]);
    }
    free(plan);
    return status;
}

static bool one_of(const char *value, const char *const *allowed) {
    for (; *allowed; allowed++)
        if (strcmp(value, *allowed) == 0) return true;
    return false;
}

/* There is one device, on USB; the strings are those of the real library. */
static bool options_fit(char **keys, char **values, size_t count) {
    static const char *const devices[] = {"", "usb", ":0", "usb:0", NULL};
    static const char *const speeds[] = {"Low", "Medium", "High", "Max", NULL};
    for (size_t i = 0; i < count; i++) {
        if (strcmp(keys[i], "device") == 0 && !one_of(values[i], devices)) return false;
        if (strcmp(keys[i], "Performance") == 0 && !one_of(values[i], speeds)) return false;
    }
    return true;
}

/* Ask the device to open, and tell it the options, one `key=value` a line. */
static bool opened(int fd, char **keys, char **values, size_t count) {
    char text[1024];
    size_t length = 0;
    for (size_t i = 0; i < count; i++) {
        size_t room = sizeof text - length;
        size_t added = (size_t)snprintf(text + length, room, "%s=%s\n", keys[i], values[i]);
        if (added >= room) return false;
        length += added;
    }
    struct header header = {OPEN, (uint32_t)length};
    return send_all(fd, &header, sizeof header) && send_all(fd, text, length) &&
           receive_all(fd, &header, sizeof header) && header.kind == OK;
}

EXPORT struct abi_delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count,
                                                          void (*report_error)(const char *)) {
    (void)report_error; /* the real library gives no reason either */
    if (!options_fit(keys, values, count)) return NULL;
    int fd = connect_device(0);
    if (fd < 0) return NULL;
    struct device *device = opened(fd, keys, values, count) ? calloc(1, sizeof *device) : NULL;
    if (!device) {
        close(fd);
        return NULL;
    }
    device->socket = fd;
    device->delegate.Prepare = claim;
    device->delegate.flags = ABI_ALLOW_DYNAMIC_TENSORS;
    return &device->delegate;
}

EXPORT void tflite_plugin_destroy_delegate(struct abi_delegate *delegate) {
    struct device *device = (struct device *)delegate;
    if (!device) return;
    close(device->socket);
    free(device);
}

/* ---- What can be asked without opening. ---- */

struct edgetpu_device {
    int type; /* 0: PCI, 1: USB */
    const char *path;
};

EXPORT struct edgetpu_device *edgetpu_list_devices(size_t *count) {
    int fd = connect_device(SOCK_NONBLOCK);
    *count = 0;
    if (fd < 0) return NULL;
    close(fd);
    struct edgetpu_device *devices = malloc(sizeof *devices);
    if (!devices) return NULL;
    *devices = (struct edgetpu_device){1, "/sys/bus/usb/devices/2-1"};
    *count = 1;
    return devices;
}

EXPORT void edgetpu_free_devices(struct edgetpu_device *devices) { free(devices); }

EXPORT void edgetpu_verbosity(int verbosity) { (void)verbosity; }

EXPORT const char *edgetpu_version(void) {
    return "BuildLabel(COMPILER=stand-in), RuntimeVersion(14)";
}

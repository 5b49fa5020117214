/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Python in the client's process: its own if it is a Python program, else one we start. Its symbols are looked up,
 * never linked. Each client thread keeps a PyThreadState, which is what makes a call cost a microsecond.
 */
#define _GNU_SOURCE
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "preload.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define PYTHON_FUNCTIONS(X)                                                                                           \
    X(Py_GetVersion) X(Py_IsInitialized) X(Py_InitializeFromConfig) X(Py_PreInitialize) X(PyStatus_Exception)         \
    X(PyPreConfig_InitIsolatedConfig) X(PyConfig_InitIsolatedConfig) X(PyConfig_SetBytesString) X(PyConfig_Clear)     \
    X(PyWideStringList_Append) X(Py_DecodeLocale) X(PyMem_RawFree)                                                    \
    X(PyEval_SaveThread) X(PyEval_RestoreThread) X(PyGILState_Check) X(PyGILState_GetThisThreadState)                 \
    X(PyThreadState_New) X(PyThreadState_Clear) X(PyThreadState_DeleteCurrent) X(PyInterpreterState_Main)             \
    X(PyOS_BeforeFork) X(PyOS_AfterFork_Parent) X(PyOS_AfterFork_Child)                                               \
    X(PyImport_ImportModule) X(PyObject_GetAttrString) X(PyObject_CallMethod) X(PyObject_CallFunction)                \
    X(PyObject_Vectorcall) X(PyLong_FromUnsignedLong) X(PyLong_AsLong) X(PyErr_Fetch) X(PyErr_NormalizeException)     \
    X(PyErr_Occurred) X(PyErr_Clear) X(PyErr_Print) X(Py_IncRef) X(Py_DecRef)                                         \
    X(PySys_GetObject) X(PyList_Append) X(PyUnicode_DecodeFSDefault)

static struct {
#define X(name) __typeof__(&name) name;
    PYTHON_FUNCTIONS(X)
#undef X
} py;

atomic_bool python_started;
static bool clients_own;    /* the client is a Python program */
static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static PyObject *client;    /* the module anykvm.preload.client */

/* A Python program ends its Python before it ends itself. */
bool python_alive(void)
{
    return python_started && (!clients_own || py.Py_IsInitialized());
}

static bool complain(const char *what, const char *detail)
{
    dprintf(2, "anykvm: %s%s%s\n", what, detail ? ": " : "", detail ? detail : "");
    return false;
}

static bool find_functions(void *library)
{
#define X(name)                                                                                                       \
    py.name = (__typeof__(&name))dlsym(library, #name);                                                               \
    if (!py.name)                                                                                                     \
        return complain("this program's Python lacks a function", #name);
    PYTHON_FUNCTIONS(X)
#undef X
    return true;
}

static bool add_paths(PyConfig *config, const char *paths)
{
    char *copy = strdup(paths), *rest = copy;
    bool fine = copy != NULL;

    for (char *path; fine && (path = strsep(&rest, ":"));) {
        wchar_t *wide = py.Py_DecodeLocale(path, NULL);
        fine = wide && !py.PyStatus_Exception(py.PyWideStringList_Append(&config->module_search_paths, wide));
        py.PyMem_RawFree(wide);
    }
    free(copy);
    return fine;
}

/* No signal handlers, no site, nothing of the environment: a guest in somebody else's process. */
static bool initialise(const char *paths, const char *executable)
{
    PyPreConfig pre;
    PyConfig config;
    PyStatus status;
    bool fine;

    py.PyPreConfig_InitIsolatedConfig(&pre);
    pre.utf8_mode = 1;
    status = py.Py_PreInitialize(&pre);
    if (py.PyStatus_Exception(status))
        return complain("Python does not start", status.err_msg);
    py.PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.pathconfig_warnings = 0;
    config.module_search_paths_set = 1;
    fine = add_paths(&config, paths) &&
           !py.PyStatus_Exception(py.PyConfig_SetBytesString(&config, &config.executable, executable)) &&
           !py.PyStatus_Exception(py.PyConfig_SetBytesString(&config, &config.program_name, executable));
    if (fine) {
        status = py.Py_InitializeFromConfig(&config);
        fine = !py.PyStatus_Exception(status);
    }
    py.PyConfig_Clear(&config);
    return fine || complain("Python does not start", status.err_msg);
}

/* The client is a Python program: anykvm is found by its own path, which does not stay in sys.path. */
static PyObject *import_beside(const char *home)
{
    PyObject *path = py.PySys_GetObject("path"), *entry = py.PyUnicode_DecodeFSDefault(home), *module = NULL;

    if (path && entry && !py.PyList_Append(path, entry)) {
        module = py.PyImport_ImportModule("anykvm.preload.client");
        PyObject *gone = py.PyObject_CallMethod(path, "remove", "O", entry);
        if (gone)
            py.Py_DecRef(gone);
        else
            py.PyErr_Clear();
    }
    if (entry)
        py.Py_DecRef(entry);
    return module;
}

static bool import(const char *home)
{
    Dl_info own;
    PyObject *result = NULL;

    client = clients_own ? import_beside(home) : py.PyImport_ImportModule("anykvm.preload.client");
    if (client && dladdr(&python_started, &own))
        result = py.PyObject_CallMethod(client, "start", "s", own.dli_fname);
    if (!result) {
        if (py.PyErr_Occurred())
            py.PyErr_Print();
        return complain("the software KVM does not start in this program", NULL);
    }
    py.Py_DecRef(result);
    return true;
}

static bool start(struct thread *t)
{
    const char *library = getenv("ANYKVM_EXEC_LIBPYTHON"), *version = getenv("ANYKVM_EXEC_VERSION");
    const char *paths = getenv("ANYKVM_EXEC_PATH"), *home = getenv("ANYKVM_EXEC_HOME");
    const char *executable = getenv("ANYKVM_EXEC_PYTHON");
    struct sigaction interrupt;
    void *handle = NULL;
    bool fine;

    if (!library || !version || !paths || !home || !executable)
        return complain("the environment of anykvm exec has gone: start the program with it", NULL);
    if (!dlsym(RTLD_DEFAULT, "Py_IsInitialized")) {
        handle = dlopen(library, RTLD_NOW | RTLD_GLOBAL);
        if (!handle)
            return complain("libpython cannot be loaded", dlerror());
    }
    if (!find_functions(handle ? handle : RTLD_DEFAULT))
        return false;
    if (strncmp(py.Py_GetVersion(), version, strlen(version)) || py.Py_GetVersion()[strlen(version)] != '.') {
        char text[200];
        snprintf(text, sizeof(text), "%.20s is this program's Python and anykvm runs on %s: install anykvm for it",
                 py.Py_GetVersion(), version);
        return complain("the versions differ", text);
    }
    clients_own = py.Py_IsInitialized();
    if (files_init())
        return complain("no memfd", strerror(errno));
    if (clients_own) {
        python_attach(t);
        fine = import(home);
        python_detach(t);
        return fine;
    }
    /* Python's module for signals makes Ctrl-C its own when it is loaded. */
    real.sigaction(SIGINT, NULL, &interrupt);
    if (!initialise(paths, executable))
        return false;
    fine = import(home);
    real.sigaction(SIGINT, &interrupt, NULL);
    t->state = py.PyEval_SaveThread();
    return fine;
}

bool python_start(void)
{
    static bool failed;
    struct thread *t;

    if (python_started)
        return true;
    pthread_mutex_lock(&starting);
    if (!python_started && !failed) {
        static bool once;
        if (!once && thread_init())
            failed = true;
        once = true;
        t = failed ? NULL : thread_begin();
        failed = !t || !start(t);
        if (!failed) {
            signals_start();
            python_started = true;
        }
        if (t)
            thread_end(t);
    }
    pthread_mutex_unlock(&starting);
    return python_started;
}

void python_attach(struct thread *t)
{
    PyThreadState *state = t->state;

    if (!state) {
        if (clients_own)
            state = py.PyGILState_GetThisThreadState();
        if (!state)
            state = t->state = py.PyThreadState_New(py.PyInterpreterState_Main());
        else if (py.PyGILState_Check()) {
            t->depth++; /* it never let go: see python_detach */
            return;
        }
    }
    py.PyEval_RestoreThread(state);
}

void python_detach(struct thread *t)
{
    if (t->depth > 1) {
        t->depth--;
        return;
    }
    py.PyEval_SaveThread();
}

void python_thread_gone(struct thread *t)
{
    if (!t->state || !python_alive())
        return;
    py.PyEval_RestoreThread(t->state);
    py.PyThreadState_Clear(t->state);
    py.PyThreadState_DeleteCurrent();
    t->state = NULL;
}

/* False: whoever forks has Python's lock, is Python, and does this itself. */
bool python_before_fork(struct thread *t)
{
    if (clients_own && py.PyGILState_Check())
        return false;
    python_attach(t);
    py.PyOS_BeforeFork();
    return true;
}

void python_after_fork(struct thread *t, bool child)
{
    if (child)
        py.PyOS_AfterFork_Child();
    else
        py.PyOS_AfterFork_Parent();
    python_detach(t);
}

/* The errno of the exception that is set; what is not an OSError is Python's to report. */
static int fetch_errno(unsigned request)
{
    PyObject *type, *value, *traceback, *number;
    long code = 0;

    py.PyErr_Fetch(&type, &value, &traceback);
    py.PyErr_NormalizeException(&type, &value, &traceback);
    number = value ? py.PyObject_GetAttrString(value, "errno") : NULL;
    if (number) {
        code = py.PyLong_AsLong(number);
        py.Py_DecRef(number);
    }
    py.PyErr_Clear();
    if (code <= 0) {
        PyObject *said = py.PyObject_CallMethod(client, "failed", "IOO", request, value ? value : type,
                                                traceback ? traceback : value);
        code = said ? py.PyLong_AsLong(said) : EIO;
        if (said)
            py.Py_DecRef(said);
        py.PyErr_Clear();
    }
    py.Py_DecRef(type);
    py.Py_DecRef(value);
    py.Py_DecRef(traceback);
    return code > 0 ? (int)code : EIO;
}

static long finish(PyObject *result, unsigned request)
{
    long value;

    if (result) {
        value = py.PyLong_AsLong(result);
        py.Py_DecRef(result);
        if (value >= 0 || !py.PyErr_Occurred())
            return value;
    }
    errno = fetch_errno(request);
    return -1;
}

int python_open(void)
{
    struct thread *t = thread_begin();
    int fd, error;

    if (!t) {
        errno = ENOMEM;
        return -1;
    }
    python_attach(t);
    fd = (int)finish(py.PyObject_CallMethod(client, "open", NULL), 0);
    error = errno;
    python_detach(t);
    thread_end(t);
    errno = error;
    return fd;
}

/* KVM_SET_SIGNAL_MASK was accepted: len, then the set. */
static void keep_mask(ino_t inode, unsigned long argument)
{
    uint64_t mask;
    struct iovec to = {&mask, sizeof(mask)}, from = {(void *)(argument + 4), sizeof(mask)};

    if (!argument)
        files_set_mask(inode, NULL);
    else if (process_vm_readv(getpid(), &to, 1, &from, 1, 0) == (ssize_t)sizeof(mask))
        files_set_mask(inode, &mask);
}

long python_ioctl(struct thread *t, int fd, ino_t inode, unsigned request, unsigned long argument)
{
    PyObject *callable, *arguments[2], *result = NULL;
    struct file file;
    bool known;
    long value;
    int error;

    python_attach(t);
    known = files_get(inode, &file);
    if (known) {
        callable = file.ioctl;
        py.Py_IncRef(callable);
    } else {
        callable = py.PyObject_CallMethod(client, "adopt", "i", fd);
    }
    if (callable) {
        if (known && file.has_mask && request == KVM_RUN)
            signals_mask(t, &file.mask);
        arguments[0] = py.PyLong_FromUnsignedLong(request);
        arguments[1] = py.PyLong_FromUnsignedLong(argument);
        if (arguments[0] && arguments[1])
            result = py.PyObject_Vectorcall(callable, arguments, 2, NULL);
        py.Py_DecRef(arguments[0]);
        py.Py_DecRef(arguments[1]);
        py.Py_DecRef(callable);
    }
    value = finish(result, request);
    error = errno;
    python_detach(t);
    if (request == KVM_SET_SIGNAL_MASK && value == 0)
        keep_mask(inode, argument);
    errno = error;
    return value;
}

/* A descriptor of a file of ours has been closed; if it may have had others, Python looks for them. */
void python_closed(ino_t inode, int descriptors)
{
    struct thread *t = thread_begin();
    PyObject *result;

    if (!t)
        return;
    python_attach(t);
    result = py.PyObject_CallMethod(client, "closed", "ki", (unsigned long)inode, descriptors);
    finish(result, 0);
    python_detach(t);
    thread_end(t);
}

/* Descriptors were closed in bulk. */
void python_sweep(void)
{
    struct thread *t = thread_begin();

    if (!t)
        return;
    python_attach(t);
    finish(py.PyObject_CallMethod(client, "sweep", NULL), 0);
    python_detach(t);
    thread_end(t);
}

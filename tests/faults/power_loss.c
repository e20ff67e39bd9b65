/* Records what a process asks of the disk for the files of a log, so that a power cut can be played afterwards.

   Preload it (LD_PRELOAD). Of each write, truncation, removal and sync of POWER_LOSS_FOLDER/log.db* (not -shm, which is
   only shared memory) and of POWER_LOSS_FOLDER/marks a record is appended to the file POWER_LOSS_TRACE: the header
   below, the name, the data. It is appended before the call returns: what happened before something else stands before
   it. A process that is killed may leave a torn record; the reader finds the next one by its magic number.

   The files themselves are reached through the caller's descriptor alone: opening and closing them here would drop the
   locks that SQLite has on them. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

struct header {
    uint64_t magic;
    uint32_t kind; /* 'w'rite, 't'runcate, 'u'nlink, 's'ync of a file, 'd'irectory synced */
    uint32_t name;
    uint64_t offset; /* of a write; the size of a truncation; of a sync: how long the trace was when it began */
    uint64_t length;
    uint64_t sum;
};

static int trace = -1;
static char folder[PATH_MAX];
static size_t folder_length;

static ssize_t (*next_write)(int, const void *, size_t);
static ssize_t (*next_pwrite)(int, const void *, size_t, off64_t);
static int (*next_ftruncate)(int, off64_t);
static int (*next_unlink)(const char *);
static int (*next_fsync)(int);
static int (*next_fdatasync)(int);

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWER_LOSS_FOLDER"), *file = getenv("POWER_LOSS_TRACE");
    next_write = dlsym(RTLD_NEXT, "write");
    next_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    next_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    next_unlink = dlsym(RTLD_NEXT, "unlink");
    next_fsync = dlsym(RTLD_NEXT, "fsync");
    next_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    if (where == NULL || file == NULL || realpath(where, folder) == NULL)
        return;
    folder_length = strlen(folder);
    trace = open(file, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
}

/* The name of a file of the log that a path stands for; "" for its folder; NULL for anything else. */
static const char *ours(const char *path) {
    const char *name;
    size_t n;
    if (strncmp(path, folder, folder_length) != 0)
        return NULL;
    if (path[folder_length] == 0)
        return "";
    if (path[folder_length] != '/')
        return NULL;
    name = path + folder_length + 1;
    n = strlen(name);
    if (strcmp(name, "marks") == 0)
        return name;
    if (strncmp(name, "log.db", 6) != 0 || strchr(name, '/') != NULL || strchr(name, ' ') != NULL)
        return NULL; /* " (deleted)": nobody can find it again */
    return n > 4 && strcmp(name + n - 4, "-shm") == 0 ? NULL : name;
}

static const char *name_of(int fd, char *path) {
    char link[64];
    ssize_t n;
    if (trace < 0 || fd < 0)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    n = readlink(link, path, PATH_MAX - 1);
    if (n <= 0)
        return NULL;
    path[n] = 0;
    return ours(path);
}

static void note(uint32_t kind, const char *name, uint64_t offset, const void *data, size_t length) {
    struct header h = {0x72656c6f6164ffULL, kind, (uint32_t)strlen(name), offset, length, 0};
    struct iovec parts[3] = {{&h, sizeof h}, {(void *)name, h.name}, {(void *)data, length}};
    int saved = errno;
    h.sum = h.magic ^ ((uint64_t)h.kind << 32 | h.name) ^ h.offset * 31 ^ h.length * 131;
    if (writev(trace, parts, length > 0 ? 3 : 2) < 0)
        abort(); /* a trace with a hole would accuse the wrong one */
    errno = saved;
}

static uint64_t so_far(void) {
    struct stat st;
    return fstat(trace, &st) == 0 ? (uint64_t)st.st_size : 0;
}

ssize_t write(int fd, const void *data, size_t length) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    off64_t at = name != NULL ? lseek64(fd, 0, SEEK_CUR) : 0;
    ssize_t done = next_write(fd, data, length);
    if (name != NULL && done > 0)
        note('w', name, (uint64_t)at, data, (size_t)done);
    return done;
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t at) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    ssize_t done = next_pwrite(fd, data, length, at);
    if (name != NULL && done > 0)
        note('w', name, (uint64_t)at, data, (size_t)done);
    return done;
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at) { return pwrite64(fd, data, length, at); }

int ftruncate64(int fd, off64_t size) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    int failed = next_ftruncate(fd, size);
    if (name != NULL && !failed)
        note('t', name, (uint64_t)size, NULL, 0);
    return failed;
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

int unlink(const char *path) {
    char whole[PATH_MAX];
    const char *name = trace >= 0 && realpath(path, whole) != NULL ? ours(whole) : NULL;
    int failed = next_unlink(path);
    if (name != NULL && !failed)
        note('u', name, 0, NULL, 0);
    return failed;
}

static int synced(int fd, int (*sync)(int)) {
    char path[PATH_MAX];
    const char *name = name_of(fd, path);
    uint64_t began = name != NULL ? so_far() : 0;
    int failed = sync(fd);
    if (name != NULL && !failed)
        note(name[0] ? 's' : 'd', name, began, NULL, 0);
    return failed;
}

int fsync(int fd) { return synced(fd, next_fsync); }

int fdatasync(int fd) { return synced(fd, next_fdatasync); }

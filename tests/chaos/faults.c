/*
 * Turns the file calls that one process makes below one folder into calls that fail, or that it does not survive.
 *
 * Preload it (LD_PRELOAD). Without FAULTS_FOLDER it does nothing. tests/chaos/fault_library.py compiles it, sets these
 * variables, and explains them:
 *
 *     FAULTS_FOLDER    calls on files in this folder, and on the folder itself, are looked at
 *     FAULTS_CALL      the call that is to fail, by its name in the log, such as pwrite; * is any
 *     FAULTS_PATH      of these, those on a path, relative to the folder, that matches this glob
 *     FAULTS_NTH       of these, the how many-th; 0: none
 *     FAULTS_TIMES     how many in a row from that one on
 *     FAULTS_ACTION    error (fail with FAULTS_ERRNO), short (write a half and say so), before and after (SIGKILL then),
 *                      torn (write a half, then SIGKILL), lie (write nothing and say that all is written)
 *     FAULTS_LOG       a line for each call: its name, its path, its result
 *     FAULTS_SHADOW    keep here what a power cut would leave: each file as it was when it was last synced
 *     FAULTS_UNSYNCED  call:glob of syncs that do nothing and say that they did
 *
 * Calls: open (when it may create the file), mkdir, write, pwrite, writev, fallocate, ftruncate, fsync, fdatasync,
 * msync, rename, link, unlink, rmdir. Stores into a mapping are no calls: they are seen where they are synced.
 *
 * The shadow: <inode>.file holds a file's bytes, <inode>.folder a folder's entries (inode, d or f, name), both as they
 * stood when the last successful sync of them began. What is unlinked stays open, so that the number of its inode is
 * not given out twice; nothing is linked for that, for the count of links is there to be looked at.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <fnmatch.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))real(#name))

enum action { ERROR, SHORT, BEFORE, AFTER, TORN, LIE };
static const char *const actions[] = {"error", "short", "before", "after", "torn", "lie"};

static struct {
    int is_on;
    char folder[PATH_MAX];
    char call[32];
    char path[PATH_MAX];
    long nth, times;
    enum action action;
    int error;
    int log;
    char shadow[PATH_MAX / 2];
    char unsynced[PATH_MAX];
} plan = {.log = -1};

static pthread_mutex_t counting = PTHREAD_MUTEX_INITIALIZER;
static long seen;

/* One call on its way through. */
struct call {
    const char *name;
    char path[PATH_MAX]; /* relative to the folder */
    int is_inside;
    int is_hit;
};

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    return found;
}

static void copy_text(char *target, size_t size, const char *source)
{
    snprintf(target, size, "%s", source == NULL ? "" : source);
}

/* Read the variables again: at the start, and when a forked child has set others. */
void faults_read_environment(void)
{
    const char *folder = getenv("FAULTS_FOLDER"), *action = getenv("FAULTS_ACTION"), *log = getenv("FAULTS_LOG");
    const char *nth = getenv("FAULTS_NTH"), *times = getenv("FAULTS_TIMES"), *error = getenv("FAULTS_ERRNO");

    plan.is_on = 0;
    if (plan.log >= 0)
        syscall(SYS_close, plan.log);
    plan.log = -1;
    seen = 0;
    if (folder == NULL || *folder == '\0')
        return;
    copy_text(plan.folder, sizeof plan.folder, folder);
    copy_text(plan.call, sizeof plan.call, getenv("FAULTS_CALL"));
    copy_text(plan.path, sizeof plan.path, getenv("FAULTS_PATH"));
    copy_text(plan.shadow, sizeof plan.shadow, getenv("FAULTS_SHADOW"));
    copy_text(plan.unsynced, sizeof plan.unsynced, getenv("FAULTS_UNSYNCED"));
    plan.nth = nth == NULL ? 0 : atol(nth);
    plan.times = times == NULL ? 1 : atol(times);
    plan.error = error == NULL ? EIO : atoi(error);
    plan.action = ERROR;
    for (int i = ERROR; i <= LIE; i++)
        if (action != NULL && strcmp(action, actions[i]) == 0)
            plan.action = (enum action)i;
    if (log != NULL && *log != '\0') {
        plan.log = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        if (plan.log < 0)
            abort();
    }
    plan.is_on = 1;
}

static void before_fork(void) { pthread_mutex_lock(&counting); }
static void after_fork(void) { pthread_mutex_unlock(&counting); }

__attribute__((constructor)) static void start(void)
{
    pthread_atfork(before_fork, after_fork, after_fork);
    faults_read_environment();
}

/* The part of an absolute path below the folder; NULL for a path outside of it. */
static const char *below(const char *path)
{
    size_t length = strlen(plan.folder);
    if (strncmp(path, plan.folder, length) != 0)
        return NULL;
    return path[length] == '\0' ? "." : path[length] == '/' ? path + length + 1 : NULL;
}

static int path_of(int file, char *path)
{
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", file);
    ssize_t length = readlink(name, path, PATH_MAX - 1);
    if (length < 0)
        return -1;
    path[length] = '\0';
    return 0;
}

static void absolute(int folder, const char *path, char *found)
{
    char base[PATH_MAX];
    if (path[0] == '/' || (folder == AT_FDCWD ? getcwd(base, sizeof base) == NULL : path_of(folder, base) < 0))
        copy_text(found, PATH_MAX, path);
    else if (snprintf(found, PATH_MAX, "%s/%s", base, path) >= PATH_MAX)
        found[0] = '\0';
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static int matches(const char *glob, const char *path)
{
    return *glob == '\0' || fnmatch(glob, path, FNM_PATHNAME) == 0;
}

/* Count a call. Kills where that is asked for; else 0, or the errno to fail with. */
static int begins(struct call *call, const char *name, const char *path)
{
    const char *relative;
    call->name = name;
    call->is_inside = call->is_hit = 0;
    if (!plan.is_on || (relative = below(path)) == NULL)
        return 0;
    call->is_inside = 1;
    copy_text(call->path, sizeof call->path, relative);
    if (plan.nth > 0 && (plan.call[0] == '*' || strcmp(plan.call, name) == 0) && matches(plan.path, call->path)) {
        pthread_mutex_lock(&counting);
        seen++;
        call->is_hit = seen >= plan.nth && seen < plan.nth + plan.times;
        pthread_mutex_unlock(&counting);
    }
    if (!call->is_hit)
        return 0;
    if (plan.action == BEFORE)
        die();
    return plan.action == ERROR ? plan.error : 0;
}

static int begins_on(struct call *call, const char *name, int file)
{
    char path[PATH_MAX];
    int saved = errno;
    if (!plan.is_on || path_of(file, path) < 0)
        path[0] = '\0';
    errno = saved;
    return begins(call, name, path);
}

static int begins_at(struct call *call, const char *name, int folder, const char *path)
{
    char found[PATH_MAX];
    int saved = errno;
    if (plan.is_on)
        absolute(folder, path, found);
    else
        found[0] = '\0';
    errno = saved;
    return begins(call, name, found);
}

static void note(const struct call *call, long result)
{
    char line[PATH_MAX + 64];
    if (plan.log < 0)
        return;
    int length = snprintf(line, sizeof line, "%s\t%s\t%ld\n", call->name, call->path, result);
    if (syscall(SYS_write, plan.log, line, (size_t)length) != length)
        abort();
}

static long ends(struct call *call, long result)
{
    int saved = errno;
    if (call->is_inside)
        note(call, result < 0 ? -saved : result);
    if (call->is_hit && (plan.action == AFTER || plan.action == TORN))
        die();
    errno = saved;
    return result;
}

static long fails(struct call *call, int error)
{
    errno = error;
    return ends(call, -1);
}

/* How much of a write goes through. */
static size_t part(const struct call *call, size_t size)
{
    return call->is_hit && (plan.action == SHORT || plan.action == TORN) && size > 1 ? size / 2 : size;
}

/* ------------------------------------------------------------------------------------------------ the shadow --- */

static void shadow_name(char *name, ino_t inode, const char *ending)
{
    snprintf(name, PATH_MAX, "%s/%lu.%s", plan.shadow, (unsigned long)inode, ending);
}

/* Before a name goes. */
static void keep_inode(int folder, const char *path)
{
    if (plan.is_on && plan.shadow[0] != '\0')
        syscall(SYS_openat, folder, path, O_PATH | O_CLOEXEC | O_NOFOLLOW);
}

/* Through the same descriptor where that can be read: closing another one would drop the process's fcntl locks. */
static void copy_file(int file, FILE *target)
{
    static __thread char chunk[1 << 16];
    char name[64];
    ssize_t length;
    off64_t offset = 0;
    int source = file;
    if ((fcntl(file, F_GETFL) & O_ACCMODE) == O_WRONLY) {
        snprintf(name, sizeof name, "/proc/self/fd/%d", file);
        source = (int)syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    }
    while ((length = pread64(source, chunk, sizeof chunk, offset)) > 0) {
        if (fwrite(chunk, 1, (size_t)length, target) != (size_t)length)
            abort();
        offset += length;
    }
    if (length < 0)
        abort();
    if (source != file)
        syscall(SYS_close, source);
}

static void list_folder(const char *path, FILE *target)
{
    struct dirent *entry;
    DIR *folder = opendir(path);
    if (folder == NULL)
        abort();
    while ((entry = readdir(folder)) != NULL)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            fprintf(target, "%lu %c %s\n", (unsigned long)entry->d_ino, entry->d_type == DT_DIR ? 'd' : 'f',
                    entry->d_name);
    closedir(folder);
}

/* A copy of what a sync that begins now would save; put in place once that has succeeded. "" where there is none. */
static void draft_shadow(int file, char *draft, char *target)
{
    char path[PATH_MAX];
    struct stat status;
    draft[0] = '\0';
    if (plan.shadow[0] == '\0' || path_of(file, path) < 0 || fstat(file, &status) < 0)
        return;
    if (!S_ISDIR(status.st_mode) && status.st_nlink == 0)
        return; /* unlinked: nothing of it can come back */
    snprintf(draft, PATH_MAX, "%s/%lu.%d.draft", plan.shadow, (unsigned long)status.st_ino,
             (int)syscall(SYS_gettid));
    FILE *copy = fopen(draft, "wb");
    if (copy == NULL)
        abort();
    if (S_ISDIR(status.st_mode))
        list_folder(path, copy);
    else
        copy_file(file, copy);
    if (fclose(copy) != 0)
        abort();
    shadow_name(target, status.st_ino, S_ISDIR(status.st_mode) ? "folder" : "file");
}

static int is_unsynced(const struct call *call)
{
    size_t length = strlen(call->name);
    return call->is_inside && strncmp(plan.unsynced, call->name, length) == 0 && plan.unsynced[length] == ':' &&
           matches(plan.unsynced + length + 1, call->path);
}

static int sync_file(const char *name, int (*sync_it)(int), int file)
{
    struct call call;
    char draft[PATH_MAX], target[PATH_MAX];
    int error = begins_on(&call, name, file);
    if (error != 0)
        return (int)fails(&call, error);
    if (!call.is_inside)
        return sync_it(file);
    if (is_unsynced(&call))
        return (int)ends(&call, 0);
    draft_shadow(file, draft, target);
    int result = sync_it(file);
    if (draft[0] != '\0' && result == 0 && REAL(rename)(draft, target) != 0)
        abort();
    return (int)ends(&call, result);
}

/* ------------------------------------------------------------------------------------------------- the calls --- */

int fsync(int file) { return sync_file("fsync", REAL(fsync), file); }
int fdatasync(int file) { return sync_file("fdatasync", REAL(fdatasync), file); }

/* The file that is mapped at an address, by /proc/self/maps. */
static void mapped_path(const void *address, char *path)
{
    char line[PATH_MAX + 128];
    unsigned long start_of, end_of, wanted = (unsigned long)address;
    FILE *maps = fopen("/proc/self/maps", "r");
    path[0] = '\0';
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL) {
        char *name = strchr(line, '/');
        if (sscanf(line, "%lx-%lx", &start_of, &end_of) == 2 && start_of <= wanted && wanted < end_of && name != NULL) {
            name[strcspn(name, "\n")] = '\0';
            copy_text(path, PATH_MAX, name);
            break;
        }
    }
    if (maps != NULL)
        fclose(maps);
}

int msync(void *address, size_t size, int flags)
{
    struct call call;
    char path[PATH_MAX] = "", draft[PATH_MAX] = "", target[PATH_MAX];
    if (plan.is_on)
        mapped_path(address, path);
    int error = begins(&call, "msync", path);
    if (error != 0)
        return (int)fails(&call, error);
    if (is_unsynced(&call))
        return (int)ends(&call, 0);
    if (call.is_inside && (flags & MS_SYNC) != 0) {
        int file = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
        if (file >= 0) {
            draft_shadow(file, draft, target);
            syscall(SYS_close, file);
        }
    }
    int result = REAL(msync)(address, size, flags);
    if (draft[0] != '\0' && result == 0 && REAL(rename)(draft, target) != 0)
        abort();
    return (int)ends(&call, result);
}

static int is_lie(const struct call *call) { return call->is_hit && plan.action == LIE; }

ssize_t write(int file, const void *data, size_t size)
{
    struct call call;
    int error = begins_on(&call, "write", file);
    if (error == 0 && is_lie(&call))
        return ends(&call, (long)size);
    return error != 0 ? fails(&call, error) : ends(&call, REAL(write)(file, data, part(&call, size)));
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset)
{
    struct call call;
    int error = begins_on(&call, "pwrite", file);
    if (error == 0 && is_lie(&call))
        return ends(&call, (long)size);
    return error != 0 ? fails(&call, error) : ends(&call, REAL(pwrite64)(file, data, part(&call, size), offset));
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset) { return pwrite64(file, data, size, offset); }

ssize_t writev(int file, const struct iovec *parts, int count)
{
    struct call call;
    int error = begins_on(&call, "writev", file);
    /* A half of several parts: the first of them. */
    int fewer = count > 1 && part(&call, 2) == 1 ? 1 : count;
    return error != 0 ? fails(&call, error) : ends(&call, REAL(writev)(file, parts, fewer));
}

int ftruncate64(int file, off64_t size)
{
    struct call call;
    int error = begins_on(&call, "ftruncate", file);
    return (int)(error != 0 ? fails(&call, error) : ends(&call, REAL(ftruncate64)(file, size)));
}

int ftruncate(int file, off_t size) { return ftruncate64(file, size); }

int fallocate64(int file, int mode, off64_t offset, off64_t size)
{
    struct call call;
    int error = begins_on(&call, "fallocate", file);
    return (int)(error != 0 ? fails(&call, error) : ends(&call, REAL(fallocate64)(file, mode, offset, size)));
}

int fallocate(int file, int mode, off_t offset, off_t size) { return fallocate64(file, mode, offset, size); }

/* This one gives its error instead of setting errno. */
int posix_fallocate64(int file, off64_t offset, off64_t size)
{
    struct call call;
    int error = begins_on(&call, "fallocate", file);
    if (error == 0)
        error = REAL(posix_fallocate64)(file, offset, size);
    ends(&call, -error);
    return error;
}

int posix_fallocate(int file, off_t offset, off_t size) { return posix_fallocate64(file, offset, size); }

static int open_at(int folder, const char *path, int flags, mode_t mode)
{
    struct call call;
    if ((flags & O_CREAT) == 0)
        return REAL(openat64)(folder, path, flags, mode);
    int error = begins_at(&call, "open", folder, path);
    if (error != 0)
        return (int)fails(&call, error);
    return (int)ends(&call, REAL(openat64)(folder, path, flags, mode));
}

static mode_t mode_of(int flags, va_list rest)
{
    return (flags & (O_CREAT | O_TMPFILE)) != 0 ? va_arg(rest, mode_t) : 0;
}

#define OPEN(...)                                                                                                      \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode_t mode = mode_of(flags, rest);                                                                                \
    va_end(rest);                                                                                                      \
    return open_at(__VA_ARGS__, path, flags, mode);

int open(const char *path, int flags, ...) { OPEN(AT_FDCWD) }
int open64(const char *path, int flags, ...) { OPEN(AT_FDCWD) }
int openat(int folder, const char *path, int flags, ...) { OPEN(folder) }
int openat64(int folder, const char *path, int flags, ...) { OPEN(folder) }
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }
int creat64(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

#define ON_PATH(name, folder, path, result)                                                                            \
    struct call call;                                                                                                  \
    int error = begins_at(&call, name, folder, path);                                                                  \
    return (int)(error != 0 ? fails(&call, error) : ends(&call, result));

/* A new folder has nothing in it that is safe, whatever a deleted one of the same inode had. */
static int make_folder(int folder, const char *path, mode_t mode)
{
    char shadow[PATH_MAX];
    struct stat status;
    int result = REAL(mkdirat)(folder, path, mode);
    if (result == 0 && plan.is_on && plan.shadow[0] != '\0' && fstatat(folder, path, &status, 0) == 0) {
        shadow_name(shadow, status.st_ino, "folder");
        REAL(unlink)(shadow);
    }
    return result;
}

int mkdir(const char *path, mode_t mode) { ON_PATH("mkdir", AT_FDCWD, path, make_folder(AT_FDCWD, path, mode)) }
int mkdirat(int folder, const char *path, mode_t mode)
{
    ON_PATH("mkdir", folder, path, make_folder(folder, path, mode))
}

static int unlink_at(int folder, const char *path, int flags)
{
    keep_inode(folder, path);
    return REAL(unlinkat)(folder, path, flags);
}

static int rename_at(int from_folder, const char *from, int to_folder, const char *to)
{
    keep_inode(to_folder, to);
    return REAL(renameat)(from_folder, from, to_folder, to);
}

int rmdir(const char *path) { ON_PATH("rmdir", AT_FDCWD, path, unlink_at(AT_FDCWD, path, AT_REMOVEDIR)) }
int unlink(const char *path) { ON_PATH("unlink", AT_FDCWD, path, unlink_at(AT_FDCWD, path, 0)) }
int unlinkat(int folder, const char *path, int flags)
{
    ON_PATH((flags & AT_REMOVEDIR) != 0 ? "rmdir" : "unlink", folder, path, unlink_at(folder, path, flags))
}

/* A file's new name is the path that counts. */
int rename(const char *from, const char *to) { ON_PATH("rename", AT_FDCWD, to, rename_at(AT_FDCWD, from, AT_FDCWD, to)) }
int renameat(int from_folder, const char *from, int to_folder, const char *to)
{
    ON_PATH("rename", to_folder, to, rename_at(from_folder, from, to_folder, to))
}
int link(const char *from, const char *to) { ON_PATH("link", AT_FDCWD, to, REAL(link)(from, to)) }
int linkat(int from_folder, const char *from, int to_folder, const char *to, int flags)
{
    ON_PATH("link", to_folder, to, REAL(linkat)(from_folder, from, to_folder, to, flags))
}

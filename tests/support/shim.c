/* Preloaded into a Python process: counts every state-changing call of every thread, and kills the
 * process before, or fails, the n-th one (a write can also be made short). A call that goes to a terminal, pipe or socket is not counted.
 * Python, ctypes and the SQLite inside apsw all reach the kernel through these names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define NAMES_MAX 65536
#define SHORT -1 /* instead of an errno: a write takes half of what it was given */
enum kind { OTHER, FLUSH, WRITE };
static atomic_int count, flushes;
static int armed, kill_at, fail_at, fail_errno, fail_on;
static const char *names[NAMES_MAX];

void shim_arm(int kill_before, int fail, int number, int from_then_on) {
  memset(names, 0, sizeof names);
  atomic_store(&count, 0);
  atomic_store(&flushes, 0);
  kill_at = kill_before; fail_at = fail; fail_errno = number; fail_on = from_then_on;
  armed = 1;
}
static int delay_us; /* each flush takes this much longer: a slower disk */
void shim_delay(int microseconds) { delay_us = microseconds; }
void shim_disarm(void) { armed = 0; }
int shim_count(void) { return atomic_load(&count); }
int shim_flushes(void) { return atomic_load(&flushes); }
const char *shim_name(int n) { return n > 0 && n < NAMES_MAX && names[n] ? names[n] : ""; }

static int hit(const char *name, enum kind kind) {
  if (!armed) return 0;
  int n = atomic_fetch_add(&count, 1) + 1;
  if (n < NAMES_MAX) names[n] = name;
  if (n == kill_at) kill(getpid(), SIGKILL);
  if (fail_at && (n == fail_at || (fail_on && n > fail_at)) && (fail_errno != SHORT || kind == WRITE)) {
    errno = fail_errno;
    return 1;
  }
  if (kind == FLUSH) atomic_fetch_add(&flushes, 1);
  return 0;
}
static int to_file(int fd) {
  struct stat s;
  return armed && fd > 2 && fstat(fd, &s) == 0 && (S_ISREG(s.st_mode) || S_ISDIR(s.st_mode));
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define ON_FD(ret, name, kind, params, args, fd) \
  ret name params { REAL(name); if (kind == FLUSH && delay_us) usleep(delay_us); \
    if (to_file(fd) && hit(#name, kind)) return -1; \
    return real args; }
#define WRITES(name, params, args, fd) \
  ssize_t name params { REAL(name); \
    if (to_file(fd) && hit(#name, WRITE)) { if (fail_errno != SHORT || n < 2) return -1; n /= 2; } return real args; }
#define ON_PATH(name, params, args) \
  int name params { REAL(name); if (hit(#name, OTHER)) return -1; return real args; }

WRITES(write, (int fd, const void *b, size_t n), (fd, b, n), fd)
ON_FD(ssize_t, writev, OTHER, (int fd, const struct iovec *v, int n), (fd, v, n), fd)
WRITES(pwrite, (int fd, const void *b, size_t n, off_t o), (fd, b, n, o), fd)
WRITES(pwrite64, (int fd, const void *b, size_t n, off64_t o), (fd, b, n, o), fd)
ON_FD(int, fsync, FLUSH, (int fd), (fd), fd)
static atomic_llong barriers_ns; /* what commits wait for: everything else is flushed in the background */
static atomic_int barriers;
long long shim_barriers_ns(void) { return atomic_load(&barriers_ns); }
int shim_barriers(void) { return atomic_load(&barriers); }
int fdatasync(int fd) {
  REAL(fdatasync);
  struct timespec begun, ended;
  clock_gettime(CLOCK_MONOTONIC, &begun);
  if (delay_us) usleep(delay_us);
  if (to_file(fd) && hit("fdatasync", FLUSH)) return -1;
  int result = real(fd);
  clock_gettime(CLOCK_MONOTONIC, &ended);
  atomic_fetch_add(&barriers, 1);
  atomic_fetch_add(&barriers_ns, (ended.tv_sec - begun.tv_sec) * 1000000000LL + ended.tv_nsec - begun.tv_nsec);
  return result;
}
ON_FD(int, syncfs, FLUSH, (int fd), (fd), fd)
ON_FD(int, sync_file_range, OTHER, (int fd, off64_t o, off64_t n, unsigned f), (fd, o, n, f), fd)
ON_FD(int, ftruncate, OTHER, (int fd, off_t n), (fd, n), fd)
ON_FD(int, ftruncate64, OTHER, (int fd, off64_t n), (fd, n), fd)
ON_FD(int, fallocate, OTHER, (int fd, int m, off_t o, off_t n), (fd, m, o, n), fd)
ON_FD(int, fchmod, OTHER, (int fd, mode_t m), (fd, m), fd)
ON_FD(int, fchown, OTHER, (int fd, uid_t u, gid_t g), (fd, u, g), fd)
ON_FD(int, fsetxattr, OTHER, (int fd, const char *k, const void *v, size_t n, int f), (fd, k, v, n, f), fd)
ON_PATH(unlink, (const char *p), (p))
ON_PATH(unlinkat, (int d, const char *p, int f), (d, p, f))
ON_PATH(rmdir, (const char *p), (p))
ON_PATH(mkdir, (const char *p, mode_t m), (p, m))
ON_PATH(mkdirat, (int d, const char *p, mode_t m), (d, p, m))
ON_PATH(rename, (const char *a, const char *b), (a, b))
ON_PATH(renameat, (int a, const char *b, int c, const char *d), (a, b, c, d))
ON_PATH(renameat2, (int a, const char *b, int c, const char *d, unsigned f), (a, b, c, d, f))
ON_PATH(link, (const char *a, const char *b), (a, b))
ON_PATH(linkat, (int a, const char *b, int c, const char *d, int f), (a, b, c, d, f))
void sync(void) { REAL(sync); if (hit("sync", FLUSH)) return; real(); }

#define OPENS(name, head, args) \
  int name head { \
    REAL(name); mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list a; va_start(a, flags); mode = va_arg(a, mode_t); va_end(a); } \
    if (flags & (O_CREAT | O_TRUNC) && hit(#name, OTHER)) return -1; \
    return real args; }
OPENS(open, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPENS(openat64, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))

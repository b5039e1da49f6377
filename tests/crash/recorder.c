/* Preloaded into a process: writes down every change that it makes to files, with the bytes, and every flush,
 * in the order in which the kernel did them. SQLite reaches the kernel through these names, too. One record is
 * a line of tab-separated fields (kind, inode, other inode, offset, length, name), then `length` bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static FILE *out;
static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)
#define LOCKED pthread_mutex_lock(&one_at_a_time); int saved;
#define UNLOCK saved = errno; pthread_mutex_unlock(&one_at_a_time); errno = saved;

void recorder_start(const char *path) { out = fopen(path, "w"); }
void recorder_stop(void) { if (out) fclose(out); out = NULL; }
static void put(const char *kind, ino_t a, ino_t b, off_t offset, size_t length, const char *name, const void *data) {
  if (!out) return;
  fprintf(out, "%s\t%lu\t%lu\t%ld\t%zu\t%s\n", kind, (unsigned long)a, (unsigned long)b, (long)offset, length, name);
  if (length && data) fwrite(data, 1, length, out);
}
void recorder_mark(int n) { LOCKED put("mark", (ino_t)n, 0, 0, 0, "", NULL); UNLOCK }

static ino_t of_fd(int fd) { struct stat s; return out && fd > 2 && fstat(fd, &s) == 0 && (S_ISREG(s.st_mode) || S_ISDIR(s.st_mode)) ? s.st_ino : 0; }
static ino_t of_dir(int dir, const char *path) { /* of the directory that holds the last name */
  struct stat s; char copy[4096];
  if (!strchr(path, '/')) return fstat(dir == AT_FDCWD ? open(".", O_PATH) : dir, &s) == 0 ? s.st_ino : 0;
  snprintf(copy, sizeof copy, "%s", path);
  return fstatat(dir, dirname(copy), &s, 0) == 0 ? s.st_ino : 0;
}
static const char *leaf(const char *path) { const char *slash = strrchr(path, '/'); return slash ? slash + 1 : path; }
static ino_t of_name(int dir, const char *path) { struct stat s; return fstatat(dir, path, &s, AT_SYMLINK_NOFOLLOW) == 0 ? s.st_ino : 0; }
static void put_data(int fd, off_t offset, const void *data, ssize_t count) {
  ino_t ino = of_fd(fd);
  if (ino && count > 0) put("data", ino, 0, offset, (size_t)count, "", data);
}

ssize_t write(int fd, const void *b, size_t n) {
  REAL(write); if (!out || !of_fd(fd)) return real(fd, b, n);
  LOCKED off_t at = lseek(fd, 0, SEEK_CUR); ssize_t r = real(fd, b, n); put_data(fd, at, b, r); UNLOCK return r; }
ssize_t pwrite(int fd, const void *b, size_t n, off_t o) { REAL(pwrite); LOCKED ssize_t r = real(fd, b, n, o); put_data(fd, o, b, r); UNLOCK return r; }
ssize_t pwrite64(int fd, const void *b, size_t n, off64_t o) { REAL(pwrite64); LOCKED ssize_t r = real(fd, b, n, o); put_data(fd, o, b, r); UNLOCK return r; }
ssize_t copy_file_range(int in, off64_t *io, int to, off64_t *oo, size_t n, unsigned f) {
  REAL(copy_file_range); LOCKED off_t at = lseek(to, 0, SEEK_CUR); ssize_t r = real(in, io, to, oo, n, f);
  if (out && r > 0) { char *copy = malloc((size_t)r); if (pread(to, copy, (size_t)r, at) == r) put_data(to, at, copy, r); free(copy); }
  UNLOCK return r; }
#define ON_FD(name, kind, params, args, fd, offset, length) \
  int name params { REAL(name); LOCKED int r = real args; ino_t i = of_fd(fd); \
    if (r == 0 && i) put(kind, i, (ino_t)(length), offset, 0, "", NULL); UNLOCK return r; }
ON_FD(ftruncate, "size", (int fd, off_t n), (fd, n), fd, n, 0)
ON_FD(ftruncate64, "size", (int fd, off64_t n), (fd, n), fd, n, 0)
ON_FD(fsync, "sync", (int fd), (fd), fd, 0, 0)
ON_FD(fdatasync, "sync", (int fd), (fd), fd, 0, 0)
ON_FD(syncfs, "syncfs", (int fd), (fd), fd, 0, 0)
ON_FD(fchmod, "mode", (int fd, mode_t m), (fd, m), fd, (off_t)m, 0)
ON_FD(fallocate, "zero", (int fd, int m, off_t o, off_t n), (fd, m, o, n), fd, o, n)

static void gone(int dir, const char *path) { put("entry", of_dir(dir, path), 0, 0, 0, leaf(path), NULL); }
static void here(int dir, const char *path) { put("entry", of_dir(dir, path), of_name(dir, path), 0, 0, leaf(path), NULL); }
int unlinkat(int d, const char *p, int f) { REAL(unlinkat); LOCKED int r = real(d, p, f); if (r == 0) gone(d, p); UNLOCK return r; }
int unlink(const char *p) { REAL(unlink); LOCKED int r = real(p); if (r == 0) gone(AT_FDCWD, p); UNLOCK return r; }
int rmdir(const char *p) { REAL(rmdir); LOCKED int r = real(p); if (r == 0) gone(AT_FDCWD, p); UNLOCK return r; }
static void made(int d, const char *p) { put("dir", of_name(d, p), 0, 0, 0, "", NULL); here(d, p); }
int mkdirat(int d, const char *p, mode_t m) { REAL(mkdirat); LOCKED int r = real(d, p, m); if (r == 0) made(d, p); UNLOCK return r; }
int mkdir(const char *p, mode_t m) { REAL(mkdir); LOCKED int r = real(p, m); if (r == 0) made(AT_FDCWD, p); UNLOCK return r; }
int linkat(int a, const char *b, int c, const char *d, int f) { REAL(linkat); LOCKED int r = real(a, b, c, d, f); if (r == 0) here(c, d); UNLOCK return r; }
int renameat2(int a, const char *b, int c, const char *d, unsigned f) {
  REAL(renameat2); LOCKED int r = real(a, b, c, d, f);
  if (r == 0) { if (f & RENAME_EXCHANGE) here(a, b); else gone(a, b); here(c, d); } UNLOCK return r; }
int renameat(int a, const char *b, int c, const char *d) { REAL(renameat); LOCKED int r = real(a, b, c, d); if (r == 0) { gone(a, b); here(c, d); } UNLOCK return r; }
int rename(const char *b, const char *d) { REAL(rename); LOCKED int r = real(b, d); if (r == 0) { gone(AT_FDCWD, b); here(AT_FDCWD, d); } UNLOCK return r; }

#define OPENS(name, dir, head, args) \
  int name head { REAL(name); mode_t mode = 0; \
    if (flags & (O_CREAT | __O_TMPFILE)) { va_list l; va_start(l, flags); mode = va_arg(l, mode_t); va_end(l); } \
    if (!out || !(flags & (O_CREAT | O_TRUNC))) return real args; \
    LOCKED ino_t before = of_name(dir, path); int r = real args; \
    if (r >= 0 && !before) { put("file", of_name(dir, path), 0, mode, 0, "", NULL); here(dir, path); } \
    else if (r >= 0 && (flags & O_TRUNC)) put("size", before, 0, 0, 0, "", NULL); \
    UNLOCK return r; }
OPENS(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPENS(openat64, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))

/*
 * The native pump's loop under ThreadSanitizer: its own thread, a simulated kernel that keeps the ring full, and a third
 * one that rouses it and reads its counters, as the daemon's main loop does. bench/kernel.c is the simulated kernel,
 * compiled with another name for its `main`.
 *
 * With `writeback` the loop keeps a replay log, and gets a new one when it wants to be rid of a write.
 *
 * usage: driver SECONDS [writeback]          Status 0 if commands were answered; a race is ThreadSanitizer's status.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop.h"

enum { MAILBOX = 128, DATA = 8 << 20, DEPTH = 32, BYTES = 4096, BLOCKS = 2048 };

int kernel_main(int count, char **arguments);

static struct loop loop;
static struct shelf shelf = {.size = 24 << 20, .start = 4096, .next = 4096, .limit = 16 << 20};
static char words[8][16];

static void *run_kernel(void *unused)
{
    char *arguments[8];
    (void)unused;
    for (int i = 0; i < 8; i++)
        arguments[i] = words[i];
    kernel_main(8, arguments);
    return NULL;
}

static void *run_loop(void *over)
{
    int why;
    if (loop_enable(&loop))
        abort();
    do {
        why = loop_run(&loop);
        if (shelf.memory && (why == LOOP_ENTRY || loop.hold) && !(loop.hold = loop.out))
            loop_lend(&loop, &shelf);
    } while ((why == LOOP_ROUSED || (shelf.memory && why == LOOP_ENTRY)) && !atomic_load((atomic_int *)over));
    loop_linger(&loop);
    if (why < 0 || why == LOOP_BROKEN || why == LOOP_ENDED)
        fprintf(stderr, "the loop came back with %d\n", why);
    return NULL;
}

int main(int count, char **arguments)
{
    static atomic_int over;
    uint64_t rouses = 0, seen = 0;
    pthread_t kernel, pump;
    int sockets[2], memory, file;
    uint8_t *map;

    if (count < 2)
        return 2;
    memory = memfd_create("tcmu", 0);
    file = memfd_create("storage", 0);
    if (ftruncate(memory, DATA + DEPTH * BYTES) || ftruncate(file, BLOCKS * 512) ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) || fcntl(sockets[0], F_SETFL, O_NONBLOCK))
        return 1;
    map = mmap(NULL, DATA + DEPTH * BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    if (map == MAP_FAILED)
        return 1;
    loop.ring.memory = map;
    loop.ring.length = DATA + DEPTH * BYTES;
    loop.ring.offset = MAILBOX;
    loop.ring.size = DATA - MAILBOX;
    loop.uio = loop.bell = sockets[0];
    loop.wake = eventfd(0, EFD_NONBLOCK);
    loop.storage = file;
    loop.disk = (struct plain_disk){.block_size = 512, .blocks = BLOCKS, .maximum = 1 << 20, .writable = true};
    if (loop_init(&loop, 256))
        return 1;
    if (count > 2) {
        shelf.file = memfd_create("shelf", 0);
        if (ftruncate(shelf.file, (off_t)shelf.size))
            return 1;
        shelf.memory = mmap(NULL, shelf.size, PROT_READ | PROT_WRITE, MAP_SHARED, shelf.file, 0);
        if (shelf.memory == MAP_FAILED)
            return 1;
        loop_lend(&loop, &shelf);
    }
    snprintf(words[0], 16, "kernel");
    snprintf(words[1], 16, "%d", memory);
    snprintf(words[2], 16, "%d", sockets[1]);
    snprintf(words[3], 16, "%d", DEPTH);
    snprintf(words[4], 16, "%d", BYTES);
    snprintf(words[5], 16, "%d", 50);
    snprintf(words[6], 16, "%d", BLOCKS);
    snprintf(words[7], 16, "%s", arguments[1]);
    pthread_create(&kernel, NULL, run_kernel, NULL);
    if (write(sockets[0], "\0\0\0", 4) != 4)
        return 1;
    pthread_create(&pump, NULL, run_loop, &over);
    for (double until = atof(arguments[1]) * 0.8e6; until > 0; until -= 100) {
        loop_rouse(&loop);
        rouses++;
        seen = atomic_load(&loop.reads) + atomic_load(&loop.writes) + atomic_load(&loop.in_flight);
        usleep(100);
    }
    pthread_join(kernel, NULL);
    atomic_store(&over, 1);
    loop_rouse(&loop);
    shutdown(sockets[1], SHUT_RDWR);
    pthread_join(pump, NULL);
    seen = atomic_load(&loop.reads) + atomic_load(&loop.writes);
    printf("%llu commands, %llu rouses, %llu sleeps, %llu doorbells\n", (unsigned long long)seen,
           (unsigned long long)rouses, (unsigned long long)atomic_load(&loop.sleeps),
           (unsigned long long)atomic_load(&loop.doorbells));
    loop_close(&loop);
    return !seen;
}

/*
 * The least that a TCMU handler over io_uring does: what the native pump's CPU per command is measured against. It
 * answers READ (10) and WRITE (10), believes every CDB, knows no error, no task management and no second command of an
 * id, and sleeps as soon as there is nothing to do.
 *
 * usage: minimal MEMORY LENGTH BELL FILE
 */
#define _GNU_SOURCE
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

enum { RING = 128 };

int main(int count, char **arguments)
{
    struct io_uring uring;
    struct io_uring_params params = {.flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN};
    struct rusage before, after;
    uint64_t done = 0;
    uint8_t *memory;
    uint32_t size, next = 0, *head, *tail;
    int bell, file, armed = 0;
    char four[4] = "";

    if (count != 5)
        return 2;
    memory = mmap(NULL, strtoull(arguments[2], NULL, 10), PROT_READ | PROT_WRITE, MAP_SHARED, atoi(arguments[1]), 0);
    bell = atoi(arguments[3]);
    file = atoi(arguments[4]);
    if (memory == MAP_FAILED || io_uring_queue_init_params(256, &uring, &params))
        return 1;
    memcpy(&size, memory + 8, 4);
    head = (uint32_t *)(memory + 12);
    tail = (uint32_t *)(memory + 64);
    signal(SIGPIPE, SIG_IGN);
    getrusage(RUSAGE_SELF, &before);
    if (write(bell, four, 4) != 4)
        return 1;
    for (;;) {
        struct io_uring_cqe *cqe;
        unsigned place, taken = 0, seen = 0;
        while (__atomic_load_n(head, __ATOMIC_ACQUIRE) != next) {
            uint8_t *entry = memory + RING + next, *cdb;
            struct io_uring_sqe *sqe = io_uring_get_sqe(&uring);
            uint64_t offset, length, cdb_offset, lba;
            uint32_t len_op;
            uint16_t id;
            if (!sqe)
                break;
            memcpy(&len_op, entry, 4);
            memcpy(&id, entry + 4, 2);
            memcpy(&cdb_offset, entry + 24, 8);
            memcpy(&offset, entry + 48, 8);
            memcpy(&length, entry + 56, 8);
            cdb = memory + cdb_offset;
            lba = (uint64_t)cdb[2] << 24 | cdb[3] << 16 | cdb[4] << 8 | cdb[5];
            if (cdb[0] == 0x28) {
                io_uring_prep_read(sqe, file, memory + offset, (unsigned)length, lba * 512);
            } else {
                io_uring_prep_write(sqe, file, memory + offset, (unsigned)length, lba * 512);
                sqe->rw_flags = 2; /* RWF_DSYNC */
            }
            io_uring_sqe_set_data64(sqe, id);
            next += len_op & ~7u;
            if (next == size)
                next = 0;
        }
        if (!armed) {
            struct io_uring_sqe *sqe = io_uring_get_sqe(&uring);
            io_uring_prep_poll_add(sqe, bell, POLLIN);
            io_uring_sqe_set_data64(sqe, 0);
            armed = 1;
        }
        io_uring_submit_and_wait(&uring, 1);
        io_uring_for_each_cqe(&uring, place, cqe) {
            uint8_t *entry = memory + RING + *tail;
            uint16_t id = (uint16_t)cqe->user_data;
            uint32_t len_op, after_it;
            seen++;
            if (!id) {
                if (cqe->res & ~POLLIN || read(bell, four, 4) <= 0)
                    goto end;
                armed = 0;
                continue;
            }
            memcpy(&len_op, entry, 4);
            memcpy(entry + 4, &id, 2);
            entry[7] = 0;
            memset(entry + 8, 0, 104);
            entry[8] = cqe->res < 0 ? 2 : 0;
            after_it = *tail + (len_op & ~7u);
            __atomic_store_n(tail, after_it == size ? 0 : after_it, __ATOMIC_RELEASE);
            taken++;
        }
        io_uring_cq_advance(&uring, seen);
        done += taken;
        if (taken && write(bell, four, 4) != 4)
            break;
    }
end:
    getrusage(RUSAGE_SELF, &after);
    printf("%llu %ld %ld\n", (unsigned long long)done,
           (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000L + after.ru_utime.tv_usec - before.ru_utime.tv_usec,
           (after.ru_stime.tv_sec - before.ru_stime.tv_sec) * 1000000L + after.ru_stime.tv_usec - before.ru_stime.tv_usec);
    return 0;
}

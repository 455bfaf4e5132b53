/* How the loop waits for the initiator and for storage: looking on for a moment, then asleep. */
#ifndef TCMU_RETRY_WAIT_H
#define TCMU_RETRY_WAIT_H

#include "loop.h"

/* Who a completion of io_uring is for, where it is not for a slot. */
#define FOR_UIO (UINT64_MAX - 1)
#define FOR_WAKE (UINT64_MAX - 2)
#define FOR_CANCEL (UINT64_MAX - 3)
#define FOR_FLUSH (UINT64_MAX - 4)

/* CLOCK_MONOTONIC, nanoseconds. */
uint64_t wait_now(void);
/* Nanoseconds of looking on that pay, on this machine. */
uint64_t wait_look_most(void);
/* 0 for what io_uring says when it is short of something for the moment. */
int wait_tolerate(int result);
/* The uio device or the wake-up has something to say. events: of poll. */
void wait_note_uio(struct loop *loop, int events);
void wait_note_wake(struct loop *loop);
/* What was started leaves for the storage before anything else is done, and with it goes the thread to sleep if it may:
 * one system call. 0 or -errno. */
int wait_or_submit(struct loop *loop, bool may_sleep);

#endif

/*
 * clock.h - what time it is: durations and deadlines by a clock that nobody sets, dates by the one
 * on the wall.
 */
#ifndef KMS_CLOCK_H
#define KMS_CLOCK_H

#include <stdint.h>

/* Monotonic: for durations and deadlines. */
int64_t now_us(void);
int64_t now_ms(void);

/* Since the machine was started, asleep or not: for what must not be hurried by setting a clock. */
int64_t boot_ms(void);

/* Since 1970: for what is written down or compared with what others wrote. */
int64_t wall_ms(void);

#endif

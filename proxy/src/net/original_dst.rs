//! The address a redirected client meant to reach (SO_ORIGINAL_DST, IP6T_SO_ORIGINAL_DST).
